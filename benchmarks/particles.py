"""Particle methods against best-of-N on a packaged model, at equal denoiser calls or equal total
FLOPs.

    python benchmarks/particles.py --json particles.json
    python benchmarks/particles.py --model scenes-turbo --json few_step.json
    python benchmarks/particles.py --algorithms rbf svdd --kernels vp-sde --budgets 100 --prompts 10 --seeds 1

Hard held-out prompts are searched with the learned reward (`scenes-learned`); the exact checker,
which no search sees, judges what comes back. A budget of n is n denoiser calls (`--unit nfe`), or
the FLOPs that best-of-N takes with n calls, its decodes and rewards included (`--unit flops`):
methods that look more often pay for it then. Figures are means over prompts of the mean over seeds,
with the standard error over prompts. Diversity is the mean distance (root mean square over pixels)
between the winners of a prompt's seeds. OUT is written after every run, and runs that it holds are
not made again, so that an interrupted benchmark goes on.

kernels: "pipeline", the model's own scheduler (Euler); "linear-sde", the model's own path with g =
3 t^2; "vp-sde", the VP path at the pipeline's noise levels; "vp-sde-sqrt", VP at the times of RBF's
code, which stay near the noise; "vp-ode" and "vp-sde-weak", VP without noise and with g = t^2,
which tell what its times do and what its noise does; "renoise", fresh noise on the estimate;
"late-sde", the linear SDE from time .7 on, and Euler's steps before. "..., drafts" have the
packaged drafter, which was trained for 20 steps, and whose passes count as parts of denoiser calls.
"drafts, ..." spend a fifth of the budget on drafts, from the best of which the method goes on.
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

from ttsnap import Budget, make_algorithm, search
from ttsnap.files.writing import markdown
from ttsnap.options.model import EMBEDDED, TURBO
from ttsnap.pipelines import load
from ttsnap.reward_models.registry import make_rewards
from ttsnap.scenes import sample_prompts

KERNELS: dict[str, dict[str, Any]] = {
    "pipeline": {"kernel": "pipeline"},
    "linear-sde": {"kernel": "sde"},
    "vp-sde": {"kernel": "sde", "path": "vp"},
    "vp-sde-sqrt": {"kernel": "sde", "path": "vp", "times": "sqrt"},
    "vp-ode": {"kernel": "ode", "path": "vp"},
    "vp-sde-weak": {"kernel": "sde:square:1", "path": "vp"},
    "renoise": {"kernel": "renoise"},
    "late-sde": {"kernel": "sde:square:3:0.7"},
    "pipeline, drafts": {"kernel": "pipeline", "draft": "embedded"},
    "late-sde, drafts": {"kernel": "sde:square:3:0.7", "draft": "embedded"},
}
SDE = ("linear-sde", "vp-sde", "vp-sde-sqrt")
LATE = (*SDE, "late-sde")
DRAFTED = ("late-sde, drafts",)
CODE = {"name": "code", "block": 2}
# Algorithm of a budget in NFE, and the kernels where it makes sense: branches of a deterministic
# path stay copies.
METHODS: dict[str, tuple[Callable[[int], Any], tuple[str, ...]]] = {
    "best-of-n": (lambda nfe: "best-of-n", ("pipeline", *SDE, "vp-ode", "vp-sde-weak", "renoise")),
    "seed-pruning": (lambda nfe: "seed-pruning", ("pipeline", "pipeline, drafts")),
    "zero-order": (lambda nfe: "zero-order", ("pipeline",)),
    "search-over-paths": (lambda nfe: "search-over-paths", ("pipeline", "linear-sde", "vp-sde")),
    "smc": (lambda nfe: "smc", LATE),
    "code": (lambda nfe: CODE, LATE),
    "svdd": (lambda nfe: "svdd", (*LATE, "vp-sde-weak", "renoise")),
    "rbf": (
        lambda nfe: {"name": "rbf", "initial": max(1, nfe // 20)},
        (*LATE, "vp-sde-weak", "renoise"),
    ),
    "drafts, smc": (lambda nfe: from_drafts({"name": "smc", "n": nfe // 25}), DRAFTED),
    "drafts, code": (lambda nfe: from_drafts({**CODE, "n": max(1, nfe // 50)}), DRAFTED),
    "drafts, svdd": (lambda nfe: from_drafts({"name": "svdd", "n": max(1, nfe // 50)}), DRAFTED),
    "drafts, rbf": (lambda nfe: from_drafts("rbf"), DRAFTED),
    "rbf-published": (lambda nfe: {"name": "rbf-published", "initial": max(1, nfe // 20)}, SDE),
    "verifier-threshold": (
        lambda nfe: {"name": "verifier-threshold", "initial": max(1, nfe // 20)},
        SDE,
    ),
    "ttsnap-rbf": (lambda nfe: "ttsnap-rbf", (*LATE, *DRAFTED)),
    "epsilon-greedy": (lambda nfe: "epsilon-greedy", SDE),
    "best-first": (lambda nfe: "best-first", SDE),
    "top-noises, smc": (lambda nfe: nested(max(2, nfe // 5), max(1, nfe // 20)), SDE),
}


def nested(n: int, keep: int) -> dict[str, Any]:
    return {
        "name": "nested",
        "first": {"name": "top-noises", "n": n, "keep": keep},
        "second": "smc",
    }


def from_drafts(second: str | dict[str, Any]) -> dict[str, Any]:
    """A search that goes on from the best of the initial noises that a fifth of the budget drafts.

    Its n is what the other four fifths pay for at 20 steps, which the drafter was made for.
    """
    drafting = {"name": "seed-pruning", "keep": [], "levels": []}
    return {"name": "nested", "first": drafting, "second": second, "share": 0.2}


def main() -> None:
    p = parser(__doc__)
    p.add_argument(
        "--model", default=EMBEDDED, choices=(EMBEDDED, TURBO), help="many steps, or few"
    )
    p.add_argument("--algorithms", nargs="+", default=list(METHODS), choices=METHODS)
    p.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[50, 100, 200, 500], help="NFE per prompt"
    )
    p.add_argument("--unit", nargs="+", default=["nfe"], choices=["nfe", "flops"])
    a = p.parse_args()
    settings = {k: getattr(a, k) for k in (*SETTINGS, "model")}
    done = read(a.json, settings)
    pipe = load(a.model, dtype=getattr(torch, a.dtype))
    call = {"num_inference_steps": a.steps}
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    reward, metrics = make_rewards(a.reward), make_rewards(a.held_out)
    # Seed by seed, so that what is there when it is interrupted compares all methods.
    for seed, unit, nfe, name in itertools.product(range(a.seeds), a.unit, a.budgets, a.algorithms):
        build, kernels = METHODS[name]
        for kernel in [k for k in kernels if k in a.kernels]:
            key = f"{name}|{kernel}|{nfe}{unit}|{seed}"
            if key in done:
                continue
            engine = pipe.engine(reward, batch_size=a.batch_size, **KERNELS[kernel], **call)
            budget = Budget(nfe=nfe) if unit == "nfe" else flops_of(nfe, engine)
            begin = time.perf_counter()
            results = search(
                prompts, make_algorithm(build(nfe)), engine, budget, seed=seed * 100_000
            )
            done[key] = {
                **winners(results, metrics),
                "verifier_share": results[0].spent.verifier_share,
                "seconds": time.perf_counter() - begin,
                "occupancy": engine.stats["nfe"] / engine.room,
                "engine_seconds": engine.timings,
            }
            print(
                f"{key}: {np.mean(done[key]['reward']):.3f} reward, {done[key]['seconds']:.0f} s",
                flush=True,
            )
            write(a.json, settings, done)
    print(table(done, a))
    for name, kernel in (("seed-pruning", "pipeline"), ("best-of-n", "")):
        said = f"with the kernel {kernel}" if kernel else "with the same kernel"
        print(
            f"\nless what {name} finds {said}, prompt by prompt\n\n{paired(done, a, name, kernel)}"
        )


def table(runs: dict[str, Any], a: argparse.Namespace) -> str:
    """Markdown: a line for each algorithm, kernel and budget, over the seeds that were run."""
    names = ["reward", *a.held_out]
    lines = []
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for key, run in runs.items():
        name, kernel, budget, _ = key.split("|")
        groups.setdefault((name, kernel, budget), []).append(run)
    for (name, kernel, budget), found in groups.items():
        cells = [cell(found, metric) for metric in names]
        nfe, flops = (np.mean([run[k] for run in found]) for k in ("nfe", "flops"))
        share = np.mean([run["verifier_share"] for run in found])
        spent = [f"{nfe:.0f}", f"{flops / 1e12:.3f}", f"{share:.0%}"]
        lines.append([name, kernel, budget, *cells, diversity(found), *spent])
    head = [
        "algorithm",
        "kernel",
        "budget",
        *names,
        "diversity",
        "NFE",
        "TFLOPs",
        "verifier's time",
    ]
    return markdown(head, lines, left=(0, 1))


def paired(runs: dict[str, Any], a: argparse.Namespace, base_name: str, base_kernel: str) -> str:
    """Markdown: as `table`, differences to an algorithm, with a kernel ("" for the same one), at
    the same budget.

    Seeds that only one of the two was run with are left out.
    """
    names = ["reward", *a.held_out]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for key, run in runs.items():
        name, kernel, budget, seed = key.split("|")
        base = runs.get(f"{base_name}|{base_kernel or kernel}|{budget}|{seed}")
        if base is not None and base is not run:
            more = {metric: np.subtract(run[metric], base[metric]) for metric in names}
            groups.setdefault((name, kernel, budget), []).append(more)
    lines = [
        [*group, *(cell(found, metric) for metric in names)] for group, found in groups.items()
    ]
    return markdown(["algorithm", "kernel", "budget", *names], lines, left=(0, 1))


if __name__ == "__main__":
    main()
