"""Searches of the embedded model on captions of kinds that it never saw, from 50 to 3,200
evaluations.

    python benchmarks/harder_world.py --prompt-seed 0 1 2 --recordings FOLDER --json harder.json

On the kinds that the model was trained on nearly every search finds a right image with 400
evaluations. Those of `ttsnap.scenes.UNSEEN_KINDS` (five objects, counts with a relation,
near-identical objects) leave room. Held-out prompts are recorded, every seed to the end, the
checker's soft score (searched) and its strict verdict (only reported) at every step; a recording
that was interrupted goes on. Searches are simulated with the objects that run live; best-of-N is
exact. A pruning schedule and the prices of the policy that shares one pot are fitted on other
prompts of these kinds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from arguments import add_recording
from embedded_curve import REWARDS, SOFT, rows_of, table

from ttsnap import Budget, SeedPruning, __version__
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.protocols import Algorithm
from ttsnap.core.utility import weighted
from ttsnap.files.writing import markdown
from ttsnap.options.record import RecordOptions, TuneOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.scenes import UNSEEN_KINDS, parse, sample_prompts
from ttsnap.simulation.calibrate import Fit, calibrate
from ttsnap.simulation.simulate import Curve, best_of_n_curve, curve
from ttsnap.simulation.sizing import short_of_seeds
from ttsnap.simulation.tune import tune

STRICT = weighted([0.0, 1.0])
SHARED = "price-of-compute, shared"


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--prompt-seed", type=int, nargs="+", default=[0], help="each draws other held-out prompts"
    )
    p.add_argument("--kinds", nargs="+", default=list(UNSEEN_KINDS), help="of captions, in turn")
    p.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[50, 100, 200, 400, 800, 1600, 3200],
        help="NFE per prompt",
    )
    add_recording(p, prompts=24, seeds=256, steps=20)
    p.add_argument(
        "--fit-prompts", type=int, default=24, help="not held out, to fit schedule and prices on"
    )
    p.add_argument("--fit-seeds", type=int, default=64)
    p.add_argument("--fit-budgets", type=int, nargs="+", default=[50, 100, 200, 400])
    p.add_argument("--trials", type=int, default=400, help="schedules to try")
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    a = p.parse_args()

    call = {**defaults(), "num_inference_steps": a.steps}
    engine = load(dtype=getattr(torch, a.dtype)).engine(
        list(REWARDS), batch_size=a.batch_size, **call
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.recordings or Path(temporary)

        def recorded(name: str, prompts: list[str], seeds: int) -> Recording:
            return record(
                engine, prompts, folder / name, RecordOptions(seeds), info=call, progress_bar=True
            )

        fit = recorded(
            "fit", sample_prompts(a.fit_prompts, 1, a.kinds, held_out=False), a.fit_seeds
        )
        tests = [
            recorded(f"test{s}", sample_prompts(a.prompts, s, a.kinds), a.seeds)
            for s in a.prompt_seed
        ]

    budgets = [Budget(nfe=b) for b in sorted(a.budgets)]
    tuned = tune(
        fit,
        [Budget(nfe=b) for b in a.fit_budgets],
        TuneOptions(trials=a.trials, holdout=0),
        fit=Fit(utility=SOFT),
    ).schedule
    priced = PriceOfCompute(calibrate(fit, fit=Fit(utility=SOFT)))

    def enough(schedule: SeedPruning) -> list[Budget]:
        """The budgets with which it starts no more seeds than were recorded; beyond, it would find
        more live."""
        short = short_of_seeds(tests[0], schedule, budgets)
        return budgets if short is None else budgets[: budgets.index(short)]

    curves = {
        "best-of-n": [best_of_n_curve(test, budgets, utility=SOFT) for test in tests],
        "best-of-n by the strict verdict": [
            best_of_n_curve(test, budgets, utility=STRICT) for test in tests
        ],
    }
    searches: list[tuple[str, Algorithm, list[Budget]]] = [
        ("seed-pruning", SeedPruning(), enough(SeedPruning())),
        ("seed-pruning, tuned", tuned, enough(tuned)),
        (SHARED, priced, enough(tuned)),
    ]
    for name, algorithm, paid in searches:
        if paid:
            curves[name] = [
                curve(test, algorithm, paid, a.repeats, shared=name == SHARED, utility=SOFT)
                for test in tests
            ]
    whole = {name: pooled(found) for name, found in curves.items()}
    rows = [row for name, found in whole.items() for row in rows_of(name, found)]
    leads = {
        name: leads_of(found, whole["best-of-n"])
        for name, found in whole.items()
        if "best-of-n" not in name
    }
    schedule = {"steps": list(tuned.steps or ()), "keep": list(tuned.keep)}
    kinds = kinds_of(tests, best_of=400 // engine.grid.nfe)
    print(table(rows))
    print(f"tuned schedule: {schedule}")
    for name, found in leads.items():
        print(
            f"{name}, strict above best-of-n's: "
            + ", ".join(f"{b} NFE {x:+.3f} ± {e:.3f}" for b, x, e in found)
        )
    print(kind_table(kinds))
    if a.json:
        setting = {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"
        }
        report = {
            "ttsnap": __version__,
            "setting": setting,
            "schedule": schedule,
            "kinds": kinds,
            "leads": leads,
            "rows": rows,
        }
        a.json.write_text(json.dumps(report, indent=1))


def pooled(curves: list[Curve]) -> Curve:
    """One curve over the prompts of all."""
    return Curve(
        curves[0].budgets,
        np.concatenate([c.rewards for c in curves]),
        np.concatenate([c.scores for c in curves]),
        np.mean([c.spent for c in curves], 0),
        np.max([c.most for c in curves], 0),
    )


def leads_of(found: Curve, base: Curve) -> list[tuple[float, float, float]]:
    """(NFE, by how much more of the prompts are right than in `base`, standard error of the paired
    differences)."""
    leads = found.scores[..., 1] - base.scores[:, : len(found.budgets), 1]
    errors = leads.std(0, ddof=1) / len(leads) ** 0.5
    return [
        (b.nfe or 0, float(x), float(e))
        for b, x, e in zip(found.budgets, leads.mean(0), errors, strict=True)
    ]


def kinds_of(tests: list[Recording], best_of: int) -> dict[str, dict[str, float]]:
    """By kind and for all: share of seeds that are right with its standard error over prompts, of
    best-of-`best_of`'s choices, and of prompts that any recorded seed gets right."""
    budget = [Budget(nfe=best_of * tests[0].grid.nfe)]
    kind = np.array([parse(prompt).kind for test in tests for prompt in test.prompts])
    one, any_seed = (
        np.concatenate([f(test.final[..., 1], 1) for test in tests]) for f in (np.mean, np.max)
    )
    chosen = np.concatenate(
        [best_of_n_curve(test, budget, utility=SOFT).scores[:, 0, 1] for test in tests]
    )
    out = {}
    for name in (*dict.fromkeys(kind.tolist()), "all"):
        mine = (kind == name) | (name == "all")
        error = 1 / mine.sum() ** 0.5
        out[name] = {
            "prompts": float(mine.sum()),
            "one": float(one[mine].mean()),
            "one_se": float(one[mine].std(ddof=1) * error),
            "best": float(chosen[mine].mean()),
            "best_se": float(chosen[mine].std(ddof=1) * error),
            "any": float(any_seed[mine].mean()),
        }
    return out


def kind_table(kinds: dict[str, dict[str, float]]) -> str:
    """Markdown, one line a kind."""
    lines = []
    for name, k in kinds.items():
        cells = [
            f"{k['one']:.3f} ± {k['one_se']:.3f}",
            f"{k['best']:.2f} ± {k['best_se']:.2f}",
            f"{k['any']:.2f}",
        ]
        lines.append([name, f"{k['prompts']:.0f}", *cells])
    return markdown(
        ["kind", "prompts", "one seed", "best-of-N at 400 NFE", "any recorded seed"], lines
    )


if __name__ == "__main__":
    main()
