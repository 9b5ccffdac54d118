"""The few-step model beside the many-step one: how good one seed and the best of N are, and how
sharp early estimates.

    python benchmarks/few_step.py --json few_step.json
    python benchmarks/few_step.py --models scenes-turbo --steps 4 --kernels pipeline

Held-out hard prompts are recorded: every seed to the end, the checker's soft score, by which
searches choose, and its strict verdict, which is only reported, at every step. For each model,
number of steps and kernel:

1. one seed: mean soft score and the share that is strictly right;
2. rank correlation (Spearman) within prompts of each step's x0 estimate with the finished image, by
   the soft score;
3. best-of-N (exact) and seed pruning (searches of the recording) at each budget in NFE.

An NFE of the many-step model is two passes of the network, of which one has no text; that of the
few-step one is one.
kernels: as in particles.py. Means over prompts with their standard errors.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from arguments import add_recording
from embedded_curve import REWARDS, SOFT, rows_of, table
from particles import KERNELS

from ttsnap import Budget, SeedPruning, __version__
from ttsnap.core.arrays import FloatArray
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.scenes import sample_prompts
from ttsnap.simulation.looks import ranked
from ttsnap.simulation.simulate import best_of_n_curve, curve


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--models", nargs="+", default=["embedded", "scenes-turbo"])
    p.add_argument("--steps", type=int, nargs="+", default=[10])
    p.add_argument(
        "--kernels", nargs="+", default=["pipeline", "linear-sde", "vp-sde"], choices=KERNELS
    )
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[10, 25, 50, 100, 200], help="NFE per prompt"
    )
    add_recording(p, prompts=24, seeds=24)
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=0,
        help="another seed, other held-out prompts of the same kinds",
    )
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    setting = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"}
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.recordings or Path(temporary)
        for model, steps, kernel in itertools.product(a.models, a.steps, a.kernels):
            found.append(measured(model, steps, kernel, folder, a))
            if a.json:
                a.json.write_text(
                    json.dumps(
                        {"ttsnap": __version__, "setting": setting, "found": found}, indent=1
                    )
                )


def measured(
    model: str, steps: int, kernel: str, folder: Path, a: argparse.Namespace
) -> dict[str, Any]:
    """The figures of one model, number of steps and kernel, which are printed as well."""
    call = {**defaults(model), "num_inference_steps": steps}
    pipe = load(model, dtype=getattr(torch, a.dtype))
    engine = pipe.engine(list(REWARDS), batch_size=a.batch_size, **KERNELS[kernel], **call)
    options = RecordOptions(a.seeds, seed=a.seed)
    info = {**call, "kernel": kernel, "model": model}
    there = folder / f"{model}-{steps}-{kernel}-{a.prompt_seed}"
    recording = record(
        engine,
        sample_prompts(a.prompts, a.prompt_seed),
        there,
        options,
        info=info,
        progress_bar=True,
    )
    one = {name: mean(recording.final[..., i].mean(1)) for i, name in enumerate(REWARDS)}
    ranks = [{"nfe": r.nfe, "spearman": r.mean, "se": r.error} for r in ranked(recording, SOFT)]
    budgets = [Budget(nfe=b) for b in a.budgets if b >= steps]
    rows = rows_of("best-of-n", best_of_n_curve(recording, budgets, utility=SOFT))
    if steps > 2:
        rows += rows_of(
            "seed-pruning", curve(recording, SeedPruning(), budgets, a.repeats, utility=SOFT)
        )
    print(f"\n## {model}, {steps} steps, {kernel}\n")
    print("one seed: " + ", ".join(f"{name} {m:.3f} ± {e:.3f}" for name, (m, e) in one.items()))
    print(
        "Spearman by NFE: "
        + ", ".join(f"{r['nfe']:g}: {r['spearman']:.2f} ± {r['se']:.2f}" for r in ranks)
    )
    print(table(rows), flush=True)
    return {
        "model": model,
        "steps": steps,
        "kernel": kernel,
        "one_seed": one,
        "ranks": ranks,
        "rows": rows,
    }


def mean(values: FloatArray) -> tuple[float, float]:
    """Of values (P,), with its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    main()
