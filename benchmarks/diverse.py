"""Images that differ against the best ones: quality and diversity of K kept images, at equal
evaluations.

    python benchmarks/diverse.py

The embedded model is searched on held-out prompts for the checker's soft score, and K images of
each are kept, which are compared by colours and layout (`pixels`). Quality is the mean score of the
K. Diversity is their mean distance over pairs by a measure that no search sees: how many pixels the
objects of one image lie from those of the other, as the exact checker finds them, objects of one
colour being paired so that the mean is least; an object without a partner counts 16. "features" is
the mean distance of a network's features (scenes-learned), which no search sees either.

Every seed of --pool is denoised once, its draft, its estimate and its image scored (some minutes a
prompt; --folder keeps them). All searches run on that pool, --seeds times with seeds in another
order, as they would on the model: same algorithms, same prices. Differences are paired; errors are
standard errors over prompts. "end" lets the best survive pruning, and chooses images that differ at
the end alone.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from arguments import add_dtype
from runs import cell
from scipy.optimize import linear_sum_assignment

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.results import Event
from ttsnap.core.selection import Selection
from ttsnap.loop.dry import DryEngine
from ttsnap.pipelines import load
from ttsnap.reward_models.likeness import make_likeness
from ttsnap.reward_models.registry import make_rewards
from ttsnap.scenes import detect, sample_prompts

FAR = 16.0
"""Pixels that an object counts which the other image has not."""
STEPS = 20


class AtTheEnd(SeedPruning):
    """Seed pruning whose survivors are the best, whatever they look like."""

    def step(self, state: Any, particles: Any, rng: Any) -> Any:
        return super().step(state, replace(particles, diversity=0.0), rng)


METHODS: dict[str, tuple[Any, bool, tuple[float, ...]]] = {
    "best-of-n": (BestOfN(), False, (0, 1, 2)),
    "seed-pruning": (SeedPruning(), False, (0, 1, 2, 4)),
    "seed-pruning, end": (AtTheEnd(), False, (1,)),
    "with drafts": (SeedPruning(), True, (0, 1, 2, 4)),
    "with drafts, end": (AtTheEnd(), True, (1,)),
}
"""The algorithm, whether it drafts, and the weights of diversity, the first of which is the plain
search."""


class Pool(NamedTuple):
    """S seeds of a prompt, scored as a draft, as an estimate at one step, and finished."""

    images: np.ndarray
    """(3, S, 3, 32, 32) uint8."""
    scores: np.ndarray
    """(3, S)."""


class PoolEngine(DryEngine):
    """Looks scores and features up instead of computing them. Seed s is number `order[s]` of the
    pool."""

    def __init__(self, live: Any, pool: Pool, features: np.ndarray, order: np.ndarray) -> None:
        super().__init__(
            live.grid, live.reward_names, price=live.price, draft_calls=live.draft_calls
        )
        self.pool, self.features, self.order = pool, features, order

    def stages(self, steps: Any, look: Any) -> Any:
        early = 0 if look.name.startswith("draft") else 1
        return np.where(steps == self.grid.steps, 2, early)

    def scores(self, job: int, seeds: Any, steps: Any, look: Any) -> Any:
        return self.pool.scores[self.stages(steps, look), self.order[seeds.astype(int)]][:, None]

    def submit(self, job: int, plan: Any) -> None:
        seed_of = dict(zip(plan.uid.tolist(), plan.seed.tolist(), strict=True))
        super().submit(job, plan)
        for i, outcome in enumerate(self._done):
            if outcome.scores is not None and outcome.features is None:
                seeds = self.order[[seed_of[uid] for uid in outcome.uids.tolist()]]
                found = self.features[self.stages(outcome.step, plan.look), seeds]
                self._done[i] = replace(outcome, features=found)


def made(engine: Any, prompt: str, seeds: int, file: Path) -> Pool:
    """The pool of a prompt, from its file or denoised."""
    if not file.exists():
        step = engine.grid.step_at(SeedPruning().settled().levels[0])
        images: dict[tuple[int, int], Any] = {}
        scores: dict[tuple[int, int], float] = {}

        def listen(event: Event) -> None:
            if event.kind == "score" and event.picture is not None:
                key = event.step, event.uids[0]
                images[key] = (
                    (event.picture.fetch().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
                )
                scores[key] = event.scores[0]

        search(
            [prompt],
            KeepAll(seeds, (step,), (f"draft:{engine.draft_calls}@0",)),
            engine,
            on_event=listen,
        )
        keys = [[(at, uid) for uid in range(seeds)] for at in (0, step, STEPS)]
        columns = [[[of[key] for key in row] for row in keys] for of in (images, scores)]
        np.savez_compressed(file, im=np.array(columns[0]), sc=np.array(columns[1]))
    found = np.load(file)
    return Pool(found["im"], found["sc"])


def features_of(likeness: Any, images: np.ndarray) -> np.ndarray:
    """(..., D) of images (..., 3, H, W) uint8."""
    flat = torch.from_numpy(images.reshape(-1, *images.shape[-3:])).float() / 255
    return np.asarray(likeness(flat).double().numpy()).reshape(*images.shape[:-3], -1)


def layouts(images: np.ndarray) -> np.ndarray:
    """(S, S) distances in pixels of the objects of images (S, 3, 32, 32) uint8."""
    found = detect(images.astype(np.float32) / 255)
    places = np.stack([found.x, found.y], -1)
    objects = [
        (places[found.image == i], found.color[found.image == i]) for i in range(len(images))
    ]
    apart = np.zeros((len(images), len(images)))
    for i, j in itertools.combinations(range(len(images)), 2):
        apart[i, j] = apart[j, i] = layout(*objects[i], *objects[j])
    return apart


def layout(at: Any, colour: Any, there: Any, its: Any) -> float:
    """Mean distance of the objects of two images, each with places (M, 2) and colours (M,)."""
    size = max(len(at), len(there), 1)
    cost = np.full((size, size), FAR if len(at) or len(there) else 0.0)
    far = np.minimum(np.linalg.norm(at[:, None] - there[None], axis=-1), FAR)
    cost[: len(at), : len(there)] = np.where(colour[:, None] == its[None], far, FAR)
    return float(cost[linear_sum_assignment(cost)].mean())


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--prompts", type=int, default=24)
    p.add_argument("--prompt-seed", type=int, default=15)
    p.add_argument("--pool", type=int, default=64, help="seeds of a prompt")
    p.add_argument(
        "--seeds",
        type=int,
        default=40,
        help="searches of every prompt, with seeds in another order",
    )
    p.add_argument("--budgets", type=int, nargs="+", default=[100, 160], help="NFE per prompt")
    p.add_argument("--keep", type=int, default=4, help="K")
    p.add_argument(
        "--folder", type=Path, default=Path("build/diverse"), help="where pools are kept"
    )
    add_dtype(p)
    a = p.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    pipe, (learned,) = load(dtype=getattr(torch, a.dtype)), make_rewards("scenes-learned")
    how = {"batch_size": 64, "features": "pixels", "num_inference_steps": STEPS}
    live = {
        draft: pipe.engine("scenes", draft="embedded" if draft else None, **how)
        for draft in (False, True)
    }
    runs: dict[tuple[int, str, float], dict[str, list[float]]] = {}
    for number, prompt in enumerate(sample_prompts(a.prompts, a.prompt_seed)):
        pool = made(live[True], prompt, a.pool, a.folder / f"q{a.prompt_seed}_{number}.npz")
        apart, seen = (
            layouts(pool.images[2]),
            features_of(make_likeness("reward", [learned]), pool.images[2]),
        )
        seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
        between = np.sqrt(np.maximum(2 - 2 * seen @ seen.T, 0))
        features = features_of(make_likeness("pixels", []), pool.images)
        for nfe, (name, (algorithm, draft, weights)) in itertools.product(
            a.budgets, METHODS.items()
        ):
            for weight in weights:
                rows = []
                for seed in range(a.seeds):
                    order = np.random.default_rng([number, seed]).permutation(a.pool)
                    engine = PoolEngine(live[draft], pool, features, order)
                    (found,) = search(
                        [prompt],
                        algorithm,
                        engine,
                        f"{nfe}nfe",
                        selection=Selection(keep=a.keep, diversity=weight),
                    )
                    kept = order[[candidate.seed for candidate in found.images]]
                    pairs = np.triu_indices(len(kept), 1)
                    far = [matrix[np.ix_(kept, kept)][pairs].mean() for matrix in (apart, between)]
                    scores = pool.scores[2, kept]
                    rows.append((scores.mean(), *far, scores.max(), found.spent.finished))
                means = np.mean(rows, axis=0).tolist()
                run = runs.setdefault((nfe, name, weight), {key: [] for key in NAMES})
                for key, value in zip(NAMES, means, strict=True):
                    run[key].append(value)
        print(f"{number + 1}. {prompt}", flush=True)
    print(table(runs))


NAMES = ("quality", "layout", "features", "best", "finished")


def table(runs: dict[tuple[int, str, float], dict[str, list[float]]]) -> str:
    """Markdown: a line for each budget, method and weight, with differences to weight 0."""
    head = (
        "NFE | search | weight | finished | quality | less weight 0 | layout, px | less weight 0 |"
        " features"
    )
    lines = [f"| {head} | less weight 0 | best |", "|---" * 11 + "|"]
    for (nfe, name, weight), run in runs.items():
        plain = runs[nfe, name.removesuffix(", end"), 0]
        cells = [f"{np.mean(run['finished']):.1f}"]
        for key in NAMES[:3]:
            less = cell([{key: list(np.subtract(run[key], plain[key]))}], key)
            cells += [cell([run], key), "" if run is plain else less]
        lines.append(
            f"| {nfe} | {name} | {weight:g} | {' | '.join(cells)} | {np.mean(run['best']):.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
