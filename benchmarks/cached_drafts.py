"""Do whole calls with a step cache rank seeds well enough to pay as drafts?

    python benchmarks/cached_drafts.py --json cached.json
    python benchmarks/cached_drafts.py --model signs --ways 10 5 first-block:0.2 reuse:2:3
    python benchmarks/cached_drafts.py --model black-forest-labs/FLUX.1-dev --reward imagereward \
        --prompts-file prompts.txt --draft "" --batch-size 4 --device cuda --call '{"num_inference_steps": 28}'

Each way makes an image of every seed by the stock call, all seeds of a prompt together, from start
to end: a number is so many steps in place of all, a cache is one of diffusers' on a copy of the
network:

- `first-block:T`: FirstBlockCache with threshold T, which decides for the whole batch.
- `taylor:N:W`: TaylorSeer of whole blocks, every N-th step computed after the first W.
- `reuse:N:W`: the same without extrapolation.

FLOPs of the network are those that ran, counted by torch; a decode and a reward call count as well.

1. Rank correlation (Spearman) within prompts of each way's reward with that of the full image.
2. At the FLOPs of so many full images (`--budgets`): a way drafts seeds, and the best M of them are
   made in full from their noise. M is chosen on other prompts (`--choose`). Beside it best-of-N of
   full images, seed pruning, the drafter that a model has (`--draft`), and images of a way that are
   kept as they are. All are paired over prompts with best-of-N, and caches with the best number of
   steps, which is chosen on the other prompts, too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_dtype
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, apply_first_block_cache, apply_taylorseer_cache
from diffusers.hooks.hooks import CacheContext, _set_cache_context

from ttsnap import Budget, SeedPruning, scenes, signs
from ttsnap.core.arrays import FloatArray
from ttsnap.core.metrics import best_of_n, spearman
from ttsnap.core.utility import weighted
from ttsnap.files.writing import markdown
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.profiling.flops import count_flops
from ttsnap.recordings.record import record
from ttsnap.reward_models import make_reward
from ttsnap.simulation.simulate import curve

BLOCKS = (r"(transformer_blocks|single_transformer_blocks|blocks)\.\d+",)
FINISHED = (1, 2, 3, 4)
"""Numbers of drafts that are made in full, of which one is chosen."""
PRUNED, OWN, FULL = "seed pruning", "own drafter", "best-of-N"


@dataclass
class Made:
    """What a way makes of every seed."""

    scores: FloatArray
    """(P, S), by which searches choose."""
    right: FloatArray
    """(P, S), only reported."""
    flops: float
    """Of the network for one image, in the mean."""


# --- a stock call, its network counted ------------------------------------------------------------


class Caller:
    """The stock call of a model, by one way."""

    def __init__(self, pipe: Any, call: dict[str, Any], way: str) -> None:
        self.call, self.flops, self.counts = dict(call), 0.0, True
        self.pipe = pipe.stock_class()(**pipe.components)
        self.pipe.set_progress_bar_config(disable=True)
        name = "transformer" if "transformer" in pipe.components else "unet"
        kind, _, setting = way.partition(":")
        self.net: Any = shared_copy(getattr(pipe, name))
        setattr(self.pipe, name, self.net)
        if way.isdigit():
            self.call["num_inference_steps"] = int(way)
        elif kind != "full":
            _switch_on(self.net, kind, [float(number) for number in setting.split(":")])
        forward = self.net.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            if not self.counts:
                return forward(*args, **kwargs)
            made: list[Any] = []
            self.flops += count_flops(lambda: made.append(forward(*args, **kwargs)))
            return made[0]

        self.net.forward = counted

    def images(self, prompt: str, seeds: range) -> torch.Tensor:
        """(S, 3, H, W)"""
        registry = HookRegistry.check_if_exists_or_initialize(self.net)
        registry.reset_stateful_hooks(recurse=True)
        # Stable Diffusion 3 sets none; pipelines that do replace it.
        _set_cache_context(self.net, CacheContext("batch"))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made: torch.Tensor = self.pipe(
            prompt,
            num_images_per_prompt=len(seeds),
            generator=generators,
            output_type="pt",
            **self.call,
        ).images
        return made


def _switch_on(net: Any, kind: str, numbers: list[float]) -> None:
    """Switch a cache on in a network."""
    last = list(getattr(net, "transformer_blocks", ()))[-1:]
    for block in last:
        if getattr(block, "context_pre_only", False):
            _return_texts(block)  # diffusers' caches subtract the texts that it does not return
    if kind == "first-block":
        apply_first_block_cache(net, FirstBlockCacheConfig(*numbers))
    elif kind in ("taylor", "reuse"):
        config = TaylorSeerCacheConfig(
            cache_interval=int(numbers[0]),
            disable_cache_before_step=int(numbers[1]),
            max_order=int(kind == "taylor"),
            cache_identifiers=list(BLOCKS),
            taylor_factors_dtype=next(net.parameters()).dtype,
        )
        apply_taylorseer_cache(net, config)
    else:
        raise ValueError(f"unknown cache {kind!r}; use first-block, taylor or reuse")
    HookRegistry.check_if_exists_or_initialize(net).invalidate_child_registries_cache()


def _return_texts(block: Any) -> None:
    forward = block.forward

    def returning(*args: Any, **kwargs: Any) -> Any:
        texts = kwargs["encoder_hidden_states"]
        _, hidden = forward(*args, **kwargs)
        return texts, hidden

    block.forward = returning


# --- all seeds of all prompts ---------------------------------------------------------------------


def made_by(
    way: str, pipe: Any, prompts: list[str], judge: Callable[..., Any], a: argparse.Namespace
) -> Made:
    caller = Caller(pipe, a.call, way)
    scores, right = np.zeros((2, len(prompts), a.seeds))
    counted = 0
    for i, prompt in enumerate(prompts):
        # only this decides by what it sees
        caller.counts = i == 0 or way.startswith("first-block")
        counted += a.seeds * caller.counts
        for first in range(0, a.seeds, a.batch_size):
            seeds = range(first, min(first + a.batch_size, a.seeds))
            images = caller.images(prompt, seeds)
            scores[i, seeds], right[i, seeds] = judge(images, prompt)
    return Made(scores, right, caller.flops / counted)


def judge_of(a: argparse.Namespace) -> Callable[..., Any]:
    """What scores images of a prompt: their rewards, and whether they are right."""
    if a.reward == "scenes":
        return lambda images, prompt: scenes.check(
            images.float().cpu().numpy(), [scenes.parse(prompt)] * len(images)
        )
    reward = make_reward(a.reward)

    def judged(images: torch.Tensor, prompt: str) -> Any:
        found = reward(images.float(), [prompt] * len(images)).double().cpu().numpy()
        return found, found == 1

    return judged


def prompts_of(a: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Those that are reported, and others to choose on."""
    if a.prompts_file:
        lines = a.prompts_file.read_text().splitlines()
        return lines[: a.prompts], lines[a.prompts :][: a.choose]
    world = signs if a.model == "signs" else scenes
    tests = world.sample_prompts(a.prompts, a.prompt_seed)
    others = world.sample_prompts(a.prompts + a.choose, a.choose_seed)
    return tests, [prompt for prompt in others if prompt not in tests][: a.choose]


# --- searches of them -----------------------------------------------------------------------------


@dataclass
class Searches:
    """Searches of what was made, at the FLOPs of so many full images."""

    full: Made
    look: float
    """FLOPs of a decode and a reward call."""
    repeats: int

    @property
    def image(self) -> float:
        return self.full.flops + self.look

    def best(self, made: Made, budget: float) -> FloatArray:
        """(2, P) reward and share right of the best of a way's own images."""
        n = self._afforded(budget * self.image, made.flops)
        chosen = [best_of_n(made.scores, n, of) for of in (made.scores, made.right)]
        return np.stack(chosen)

    def drafted(self, made: Made, budget: float, finished: int) -> FloatArray | None:
        """(2, P) of the best of so many that are made in full, the first by their drafts."""
        k = self._afforded((budget - finished) * self.image, made.flops)
        if k <= finished:
            return None
        rng = np.random.default_rng(0)
        found = np.zeros((2, len(made.scores)))
        for _ in range(self.repeats):
            seeds = rng.permutation(made.scores.shape[1])[:k]
            kept = seeds[np.argsort(-made.scores[:, seeds], 1, kind="stable")[:, :finished]]
            rewards = np.take_along_axis(self.full.scores, kept, 1)
            winner = np.take_along_axis(kept, rewards.argmax(1)[:, None], 1)
            found += [np.take_along_axis(m, winner, 1)[:, 0] for m in self._full]
        return found / self.repeats

    @property
    def _full(self) -> tuple[FloatArray, FloatArray]:
        return self.full.scores, self.full.right

    def _afforded(self, flops: float, network: float) -> int:
        return min(self.full.scores.shape[1], int(flops / (network + self.look) + 1e-6))


def recorded(
    pipe: Any, prompts: list[str], a: argparse.Namespace
) -> tuple[dict[str, Made], float, dict[float, FloatArray]]:
    """Full images and the model's own drafter as ways, FLOPs of a look, and what pruning finds at
    each budget: (2, P)."""
    strict = ["scenes-strict"] if a.reward == "scenes" else []
    draft = {"draft": a.draft, "finish": "noise"} if a.draft else {"draft": None}
    engine = pipe.engine([a.reward, *strict], batch_size=64, **draft, **a.call)
    looks = (f"draft:{engine.draft_calls}@0",) if a.draft else ()
    with tempfile.TemporaryDirectory() as folder:
        made = record(engine, prompts, folder, RecordOptions(a.seeds, seed=0, looks=looks))
    price = made.price.flops
    look = price.decodes + price.reward_calls

    def right(scores: FloatArray) -> FloatArray:
        return scores[..., 1] if strict else (scores[..., 0] == 1).astype(float)

    final = made.final
    # a search's images are those of the stock call
    full = Made(final[..., 0], right(final), price.nfe * made.grid.nfe)
    ways = {"full": full}
    for scores in made.looks.values():
        ways[OWN] = Made(scores[..., 0], right(scores), price.draft_calls * engine.draft_calls)
    image = price.nfe * made.grid.nfe + price.decodes + price.reward_calls * len(made.reward_names)
    caps = [Budget(flops=b * image) for b in a.budgets]
    utility = weighted([1.0, 0.0]) if strict else None
    found = curve(made, SeedPruning(draft_share=0), caps, a.repeats, utility=utility)
    scores = found.scores
    pruned = {b: np.stack([scores[:, i, 0], right(scores[:, i])]) for i, b in enumerate(a.budgets)}
    return ways, look, pruned


def measured(prompts: list[str], pipe: Any, a: argparse.Namespace) -> Any:
    judge = judge_of(a)
    ways, look, pruned = recorded(pipe, prompts, a)
    for way in a.ways:
        ways[way] = made_by(way, pipe, prompts, judge, a)
        print(f"{way}: {ways[way].flops / ways['full'].flops:.3f} of the FLOPs", flush=True)
    return ways, look, pruned


# --- tables ---------------------------------------------------------------------------------------


def report(choice: Any, test: Any, a: argparse.Namespace) -> dict[str, Any]:
    ways, look, pruned = test
    others, other_look, _ = choice
    searches = Searches(ways["full"], look, a.repeats)
    chosen = Searches(others["full"], other_look, a.repeats)
    full = ways["full"]
    table = []
    for name, made in ways.items():
        ranks = spearman(made.scores, full.scores)
        cells = [mean(made.scores.mean(1)), mean(made.right.mean(1))]
        table.append([name, f"{made.flops / full.flops:.3f}", mean(ranks), *cells])
    print(markdown(["way", "FLOPs", "Spearman", "reward of one", "right"], table), "\n")
    rows = []
    for budget in a.budgets:
        plain = searches.best(full, budget)
        lines = {FULL: (plain, ""), PRUNED: (pruned[budget], "")}
        gains: dict[str, float] = {}
        for name in ways:
            if name == "full":
                continue
            if name != OWN:
                lines[f"{name}, kept"] = (searches.best(ways[name], budget), "")
            tried = {m: chosen.drafted(others[name], budget, m) for m in FINISHED}
            known = {m: found[0].mean() for m, found in tried.items() if found is not None}
            if known:
                m = max(known, key=lambda m: known[m])
                found = searches.drafted(ways[name], budget, m)
                if found is not None:
                    gains[name] = known[m]
                    lines[f"{name}, drafts"] = (found, str(m))
        steps = [name for name in gains if name.isdigit()]
        fewer = max(steps, key=lambda name: gains[name]) if steps else None
        for name, (found, m) in lines.items():
            over = "" if fewer is None else mean(found[0] - lines[f"{fewer}, drafts"][0][0], "+")
            row = [budget, name, m, mean(found[0]), mean(found[0] - plain[0], "+"), over]
            rows.append([*row, mean(found[1]), mean(found[1] - plain[1], "+")])
        print(f"at {budget:g} full images the chosen number of steps is {fewer}")
    heads = ["full images", "search", "made in full", "reward", "over best-of-N"]
    heads += ["over drafts of fewer steps", "right", "over best-of-N"]
    print("\n" + markdown(heads, rows), flush=True)
    return {"ways": table, "searches": rows}


def mean(values: FloatArray, sign: str = "") -> str:
    kept = values[np.isfinite(values)]
    return f"{kept.mean():{sign}.3f} ± {kept.std(ddof=1) / len(kept) ** 0.5:.3f}"


WAYS = ["15", "10", "7", "5", "first-block:0.1", "first-block:0.2", "first-block:0.4"]
WAYS += ["reuse:2:3", "reuse:4:3", "taylor:2:3", "taylor:4:3"]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="embedded")
    p.add_argument("--reward", help="by default the model's own")
    p.add_argument("--draft", default="embedded", help="the drafter beside it; empty for none")
    p.add_argument("--ways", nargs="+", default=WAYS)
    p.add_argument("--call", type=json.loads, default={}, help="arguments of the call, as JSON")
    p.add_argument("--prompts", type=int, default=24)
    p.add_argument("--prompt-seed", type=int, default=15)
    p.add_argument("--choose", type=int, default=6, help="other prompts, to choose on")
    p.add_argument("--choose-seed", type=int, default=4711)
    p.add_argument("--prompts-file", type=Path, help="a prompt a line, for other models")
    p.add_argument("--seeds", type=int, default=24)
    p.add_argument("--batch-size", type=int, default=24, help="seeds of one call")
    p.add_argument("--budgets", type=float, nargs="+", default=[3, 6, 10], help="full images")
    p.add_argument("--repeats", type=int, default=200)
    p.add_argument("--device", default="cpu")
    add_dtype(p)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    a.reward = a.reward or ("ocr:line" if a.model == "signs" else "scenes")
    a.call = {**defaults(a.model), **a.call}
    pipe = load(a.model, dtype=getattr(torch, a.dtype)).to(a.device)
    tests, others = prompts_of(a)
    choice = measured(others, pipe, a)
    found = report(choice, measured(tests, pipe, a), a)
    if a.json:
        a.json.write_text(json.dumps({"setting": vars(a), **found}, indent=1, default=str))


if __name__ == "__main__":
    main()
