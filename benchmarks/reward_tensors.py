"""Pruning policies on published reward trajectories of FLUX and SDXL, with an honest ledger and the
published one.

    git clone https://github.com/TerrysLearning/TTSnap
    git -C TTSnap checkout 99477d6ec9b274b4c6ed4050603fe5c5631b4798
    python benchmarks/reward_tensors.py --data tensors --values TTSnap/simulation/values
    python benchmarks/reward_tensors.py --data FOLDER --fit-prompts 0:20 --fit-seeds 0:40 --test-prompts 50:100 \\
        --budgets 400:4000:200 --repeats 60 --json OUT

The trajectories were published with TTSnap (arXiv 2511.22242), without a licence, so that they are
not copied here. --values writes those of FILES into --data, of the first 100 prompts, and holds
them against their checksums. A file there has the scores of 200 prompts x 200 seeds by one reward
at one step.

FOLDER holds *.safetensors with float32 tensors `base` and `noise_aware` (prompts, seeds, 20): the
reward of the x0 estimate after each denoiser call, the last column that of the finished image; nan
in `noise_aware` means that there is none (base is used).

Figures are omega: percent of excess area of the reward-against-budget curve over best-of-N, which
is computed exactly. Schedules and prices are fitted on the fit prompts and seeds only. Honest
ledger: a score at step s takes s + 1 calls, survivors are whole numbers. `--ledger published` bills
the schedules as the authors' notebooks do: s calls, 19 for a finished image, fractional survivors,
20 calls for best-of-N; the priced policies stay honest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from ttsnap import Budget, SeedPruning, __version__
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.cost import Rates
from ttsnap.core.price import Price
from ttsnap.files.writing import markdown
from ttsnap.loop.budget import task_of
from ttsnap.options.record import TuneOptions
from ttsnap.recordings.folder import load_recording
from ttsnap.recordings.replay import ReplayEngine
from ttsnap.simulation.calibrate import Fit, calibrate, priced_task
from ttsnap.simulation.simulate import LEDGERS, best_of_n_curve, compare, curve
from ttsnap.simulation.tune import tune

AUTHORS = SeedPruning(None, (0.4, 0.4, 0.5), steps=(2, 6, 11))
FILES = {
    "flux_hps": "b7e7b3f23d0862536f940c7b00cad636d466f653e682ca1c0b72e0fdf34df8d9",
    "flux_imr": "3002630c46c3c87e98f3d64c10029f9f587406895cd484d6cb42a3c154ee2355",
    "sdxl_pic": "5bf6ac54f2563ab9b55d163be37fc4d1f26173e72ab851e27f954ac14f531722",
}
"""The figures' trajectories, by generator and reward (HPSv2, ImageReward, PickScore), with the
sha256 of each file that is written."""
SIZE, PROMPTS, STEPS = 200, 100, 20
"""Prompts and seeds that were published, prompts that are read, and denoiser calls."""


def written(values: Path, folder: Path) -> None:
    """Write the published values as tensors into `folder`. SystemExit where they are others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in FILES.items():
        tensors = {
            kind: np.stack(
                [step_of(values / f"{name}_val_{short}", step) for step in range(STEPS)], axis=-1
            )
            for kind, short in (("base", "base"), ("noise_aware", "naft"))
        }
        path = folder / f"{name}.safetensors"
        save_file(tensors, path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{path} is another file than the figures were made of")
        print(f"{path}: as it should be")


def step_of(folder: Path, step: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The scores (prompts, seeds) after a denoiser call; nan where none were published."""
    path = folder / f"p{SIZE}_i{SIZE}_s{step:02d}.yaml"
    if not path.exists():
        return np.full((PROMPTS, SIZE), np.nan, np.float32)
    lines = path.read_text().splitlines()
    scores = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return np.array(scores, np.float32).reshape(SIZE, SIZE)[:PROMPTS]


def span(text: str) -> slice:
    start, stop = (int(part) if part else None for part in text.split(":"))
    return slice(start, stop)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, help="folder of *.safetensors")
    p.add_argument("--values", type=Path, help="only write --data, of TTSnap's simulation/values")
    p.add_argument("--fit-prompts", type=span, default=slice(0, 20))
    p.add_argument("--fit-seeds", type=span, default=slice(0, 40))
    p.add_argument("--test-prompts", type=span, default=slice(50, 100))
    p.add_argument(
        "--budgets", default="400:4000:200", help="from:to:step, in TFLOPs, both ends included"
    )
    p.add_argument("--repeats", type=int, default=60)
    p.add_argument("--trials", type=int, default=400, help="schedules tried when tuning")
    p.add_argument("--call-cost", type=float, default=9.9, help="TFLOPs of a denoiser call")
    p.add_argument("--score-cost", type=float, default=1.2, help="TFLOPs of a decode and reward")
    p.add_argument("--ledger", choices=LEDGERS, default="honest")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    if a.values is not None:
        written(a.values, a.data)
        return
    low, high, step = (float(x) for x in a.budgets.split(":"))
    budgets = [Budget(flops=b * 1e12) for b in np.arange(low, high + step / 2, step)]
    coarse = budgets[:: max(1, len(budgets) // 6)]
    files = sorted(a.data.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"no *.safetensors in {a.data}")
    price = Price(Rates(nfe=a.call_cost * 1e12, reward_calls=a.score_cost * 1e12))
    table: dict[str, dict[str, Any]] = {}
    bar = tqdm(total=5 * len(files), unit="method")
    for path in files:
        aware = load_recording(path, scores="noise_aware", price=price)
        base = load_recording(path, scores="base", price=price).select(a.test_prompts)
        few, test = aware.select(a.fit_prompts, a.fit_seeds), aware.select(a.test_prompts)
        began = time.perf_counter()
        tuned = tune(
            few, coarse, TuneOptions(trials=a.trials, holdout=0.0), fit=Fit(seed=a.seed)
        ).schedule
        score_cost = task_of(budgets[0], ReplayEngine(few)).score_cost
        forecast = calibrate(few, costs=priced_task(few, score_cost), fit=Fit(seed=a.seed))
        fitting = time.perf_counter() - began
        bon = best_of_n_curve(test, budgets)
        rows = {
            "TTSp, authors' schedule": (base, AUTHORS, False),
            "TTSnap, authors' schedule": (test, AUTHORS, False),
            "TTSnap, tuned": (test, tuned, False),
            "price of compute, own budgets": (test, PriceOfCompute(forecast), False),
            "price of compute, shared": (test, PriceOfCompute(forecast), True),
        }
        table.setdefault("best-of-N", {})[path.stem] = {
            "omega": 0.0,
            "se": 0.0,
            "curve": bon.mean.tolist(),
        }
        for name, (recording, algorithm, shared) in rows.items():
            bar.set_postfix_str(f"{path.stem}: {name}")
            ledger = a.ledger if algorithm.n is None else "honest"
            found = curve(
                recording,
                algorithm,
                budgets,
                a.repeats,
                shared=shared,
                ledger=ledger,
                seed=a.seed + 1,
            )
            versus = compare(found, bon, test)
            table.setdefault(name, {})[path.stem] = {
                "omega": versus.omega,
                "se": versus.error,
                "equivalent_n": versus.equivalent_n,
                "matching_budget": versus.matching_budget / 1e12,
                "curve": found.mean.tolist(),
                "spent": (found.spent * a.call_cost).tolist(),
                "fitting_seconds": fitting,
            } | (
                {"keep": algorithm.keep, "steps": algorithm.steps}
                if isinstance(algorithm, SeedPruning)
                else {}
            )
            bar.update()
    bar.close()
    names = [path.stem for path in files]
    print(
        f"omega over best-of-N, {a.ledger} ledger, prompts"
        f" {a.test_prompts.start}:{a.test_prompts.stop}"
    )
    lines = [
        [
            name,
            *(f"{row[n]['omega']:.1f} ± {row[n]['se']:.1f}" for n in names),
            f"{np.mean([row[n]['omega'] for n in names]):.1f}",
        ]
        for name, row in table.items()
    ]
    print(markdown(["", *names, "mean"], lines))
    if a.json:
        setting = {k: str(v) for k, v in vars(a).items()}
        amounts = [b.flops / 1e12 for b in budgets if b.flops]
        a.json.write_text(
            json.dumps(
                {"ttsnap": __version__, "setting": setting, "budgets": amounts, "table": table}
            )
        )


if __name__ == "__main__":
    main()
