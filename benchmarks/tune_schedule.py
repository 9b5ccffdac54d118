"""How the default pruning schedule was chosen: tuned on recordings of the embedded model, and judged on held-out ones.

    python benchmarks/tune_schedule.py --json schedules.json

Prompts of the hard kinds that are not held out are recorded (every seed to the end, every step scored); a third of them
is kept out of the fit. For each number of checks the best schedule found is printed with its gain over best-of-N (as a
share of what best-of-N gains from the smallest budget to the largest), beside the default's on the same prompts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from ttsnap.pipelines import defaults, load

from ttsnap import Budget, SeedPruning
from ttsnap.calibrate import enlarge
from ttsnap.record import record
from ttsnap.scenes import sample_prompts
from ttsnap.simulate import best_of_n_curve, curve
from ttsnap.tune import gain, tune


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, default=36)
    p.add_argument("--seeds", type=int, default=64)
    p.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200, 400])
    p.add_argument("--trials", type=int, default=300)
    p.add_argument("--prompt-seed", type=int, default=1)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--dtype", default="bfloat16", help="bfloat16 is twice as fast as float32 on CPUs that have it")
    p.add_argument("--recordings", type=Path, help="folder to keep the recording in, and to go on from")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    engine = load(dtype=getattr(torch, a.dtype)).engine(["scenes"], batch_size=a.batch_size, **defaults())
    prompts = sample_prompts(a.prompts, a.prompt_seed, held_out=False)
    with tempfile.TemporaryDirectory() as temporary:
        recording = record(engine, prompts, a.seeds, a.recordings or Path(temporary) / "fit", progress_bar=True)
    budgets = [Budget(nfe=b) for b in a.budgets]
    rest = recording.select(slice(len(prompts) - int(0.34 * len(prompts)), None))
    rest = enlarge(rest.scores[..., 0], rest, 200, np.random.default_rng(0))
    reference = best_of_n_curve(rest, budgets)
    now = SeedPruning()
    found = gain(curve(rest, now, budgets, 100).mean, reference.mean)
    print(f"default: levels {now.levels} keep {now.keep}: {found:+.3f} on the prompts kept out of the fits")
    rows = [{"levels": now.levels, "keep": now.keep, "held_out": found}]
    for checks in (1, 2, 3, 5):
        best = tune(recording, budgets, trials=a.trials, holdout=0.34, checks=checks)
        levels = [round(recording.grid.levels[k], 3) for k in best.schedule.steps or ()]
        rows.append({"levels": levels, "keep": best.schedule.keep, "fitted": best.fitted, "held_out": best.held_out,
                     "error": best.error})  # fmt: skip
        print(
            f"{checks} checks at most: levels {levels} keep {list(best.schedule.keep)}: {best.fitted:+.3f} fitted, "
            f"{best.held_out:+.3f} ± {best.error:.3f} held out",
            flush=True,
        )
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
