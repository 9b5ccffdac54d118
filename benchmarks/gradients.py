"""Reward gradients on the embedded model at equal total FLOPs, backward passes included.

    python benchmarks/gradients.py --json gradients.json
    python benchmarks/gradients.py --methods best-of-n smc "smc, dps" --budgets 100 --prompts 10 --seeds 1

Hard held-out prompts are searched with the learned reward (`scenes-learned`), whose gradient
guides; the exact checker, which no search sees, judges what comes back. A budget of n is the FLOPs
that best-of-N takes with n denoiser calls, its decodes and rewards included; a backward pass counts
as two forward passes. Figures are means over prompts of the mean over seeds, with the standard
error over prompts. Where the reward rises and the checker does not, it was hacked: for methods that
refine, the table says what the checker gave the image before and after, and for how many prompts it
fell. Guided methods and the particle methods that they stand beside sample the linear SDE with g =
3 t^2, all others the model's own Euler steps. OUT is written after every run, and runs that it
holds are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from runs import SETTINGS, cell, diversity, flops_of, parser, read, winners, write

from ttsnap import make_algorithm, search
from ttsnap.core.results import Result
from ttsnap.core.selection import Selection
from ttsnap.core.utility import make
from ttsnap.files.writing import markdown
from ttsnap.pipelines import load
from ttsnap.reward_models.registry import make_rewards
from ttsnap.scenes import sample_prompts

SDE: dict[str, Any] = {"kernel": "sde"}
WATCHED: dict[str, Any] = {"watched": True}
"""The checker is scored beside the reward, with weight 0, to be compared before and after."""
ROUNDS = 5


def guided(name: Any, guide: str) -> tuple[Callable[[int], Any], dict[str, Any]]:
    return lambda nfe: name(nfe) if callable(name) else name, {**SDE, "guide": guide}


def rbf(nfe: int) -> Any:
    return {"name": "rbf", "initial": max(1, nfe // 20)}


def refined(first: str, **options: Any) -> tuple[Callable[[int], Any], dict[str, Any]]:
    second = {"name": "noise-ascent", "ascends": 2, "rounds": ROUNDS, "weights": (1, 0), **options}
    return lambda nfe: {"name": "refined", "first": first, "second": second}, WATCHED


def rounds(name: str, **options: Any) -> Callable[[int], Any]:
    second = {"name": name, "rounds": ROUNDS, **options}
    return lambda nfe: {"name": "refined", "first": "seed-pruning", "second": second}


# Algorithm of a budget, and arguments of the engine.
METHODS: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "best-of-n": (lambda nfe: "best-of-n", {}),
    "seed-pruning": (lambda nfe: "seed-pruning", {}),
    "best-of-n, SDE": (lambda nfe: "best-of-n", SDE),
    "smc": (lambda nfe: "smc", SDE),
    "svdd": (lambda nfe: "svdd", SDE),
    "rbf": (rbf, SDE),
    "best-of-n, dps": guided("best-of-n", "dps:16:x0"),
    "best-of-n, dps through the denoiser": guided("best-of-n", "dps:8"),
    "best-of-n, dps at all steps": guided("best-of-n", "dps:16:x0:1-0"),
    "best-of-n, tilted": guided("best-of-n", "tilted:0.4:x0"),
    "smc, dps": guided("smc", "dps:16:x0"),
    "smc, twisted": guided("smc", "twisted:10:x0"),
    "svdd, dps": guided("svdd", "dps:16:x0"),
    "rbf, dps": guided(rbf, "dps:16:x0"),
    "noise-ascent": (lambda nfe: {"name": "noise-ascent", "ascends": 2}, {}),
    "best-of-n, then ascent": refined("best-of-n"),
    "seed-pruning, then ascent": refined("seed-pruning"),
    "seed-pruning, then guarded ascent": refined("seed-pruning", held_out=1),
    "seed-pruning, then zero-order": (rounds("zero-order", n=2, restart=0), {}),
}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[100], help="in denoiser calls of best-of-N"
    )
    p.add_argument("--guard", default="scenes", help="the reward that the guarded ascent watches")
    a = p.parse_args()
    settings = {k: getattr(a, k) for k in (*SETTINGS, "guard")}
    done = read(a.json, settings)
    pipe = load(dtype=getattr(torch, a.dtype))
    prompts, metrics = sample_prompts(a.prompts, a.prompt_seed), make_rewards(a.held_out)
    for seed, nfe, name in itertools.product(range(a.seeds), a.budgets, a.methods):
        key = f"{name}|{nfe}|{seed}"
        if key not in done:
            done[key] = run(pipe, name, nfe, seed, prompts, metrics, a)
            print(
                f"{key}: {np.mean(done[key]['reward']):.3f} reward, {done[key]['seconds']:.0f} s",
                flush=True,
            )
            write(a.json, settings, done)
    print(table(done, a))


def run(
    pipe: Any, name: str, nfe: int, seed: int, prompts: list[str], metrics: Any, a: Any
) -> dict[str, Any]:
    """One search of every prompt."""
    build, how = METHODS[name]
    call, watched = {"num_inference_steps": a.steps}, "watched" in how
    rewards = make_rewards([a.reward, a.guard] if watched else a.reward)
    engine = pipe.engine(
        rewards, batch_size=a.batch_size, **{k: v for k, v in how.items() if k != "watched"}, **call
    )
    budget, utility = (
        flops_of(nfe, pipe.engine(a.reward, **call)),
        make([1.0, 0.0] if watched else "mean"),
    )
    begin = time.perf_counter()
    results = search(
        prompts,
        make_algorithm(build(nfe)),
        engine,
        budget,
        selection=Selection(utility=utility),
        seed=seed * 100_000,
    )
    found = {
        **winners(results, metrics),
        "seconds": time.perf_counter() - begin,
        "engine_seconds": engine.timings,
    }
    return {**found, **(changed(results) if watched else {})}


def changed(results: list[Result]) -> dict[str, Any]:
    """Per prompt: what the checker says of the best plain seed, by the reward, and of what came
    back."""
    found: dict[str, Any] = {"before": [], "after": []}
    for result in results:
        scores, seeds = result.particles.scores[:, -1], np.flatnonzero(result.particles.parent < 0)
        found["before"].append(float(scores[seeds[np.nanargmax(scores[seeds, 0])], 1]))
        found["after"].append(float(scores[result.best.uid, 1]))
    return found


def table(runs: dict[str, Any], a: argparse.Namespace) -> str:
    """Markdown: a line for each method and budget, over the seeds that were run."""
    names = ["reward", *a.held_out]
    head = ["method", "budget", *names, "diversity", "NFE", "gradients", "TFLOPs"]
    head.append("checker of the image before, after, fell")
    lines = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, found in runs.items():
        name, budget, _ = key.split("|")
        groups.setdefault((name, budget), []).append(found)
    for (name, budget), found in groups.items():
        cells = [cell(found, metric) for metric in names] + [diversity(found)]
        nfe, pulls, flops = (
            np.mean([run[k] for run in found]) for k in ("nfe", "gradients", "flops")
        )
        cells += [f"{nfe:.0f}", f"{pulls:.0f}", f"{flops / 1e12:.3f}", ""]
        if "before" in found[0]:
            before, after = (np.array([run[k] for run in found]) for k in ("before", "after"))
            cells[-1] = (
                f"{before.mean():.3f}, {after.mean():.3f}, {np.mean(after < before - 1e-9):.0%}"
            )
        lines.append([name, budget, *cells])
    return markdown(head, lines)


if __name__ == "__main__":
    main()
