"""How the default pruning schedule was chosen: tuned on recordings of the embedded model, and
judged on held-out ones.

    python benchmarks/tune_schedule.py --json schedules.json

Prompts of the hard kinds that are not held out are recorded (every seed to the end, every step
scored); a third of them is kept out of the fit. For each number of checks the best schedule found
is printed with its omega on the prompts kept out (percent of area over best-of-N, on recorded
seeds, as `ttsnap simulate` prints it), and by how much it is above the default's on the same
prompts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from arguments import add_recording

from ttsnap import Budget, SeedPruning
from ttsnap.options.record import RecordOptions, TuneOptions
from ttsnap.pipelines import load
from ttsnap.recordings.record import record
from ttsnap.scenes import sample_prompts
from ttsnap.simulation.tune import tune


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recording(p, prompts=36, seeds=64)
    p.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200, 400])
    p.add_argument("--trials", type=int, default=300)
    p.add_argument("--prompt-seed", type=int, default=1)
    a = p.parse_args()
    engine = load(dtype=getattr(torch, a.dtype)).engine(["scenes"], batch_size=a.batch_size)
    prompts = sample_prompts(a.prompts, a.prompt_seed, held_out=False)
    with tempfile.TemporaryDirectory() as temporary:
        recording = record(
            engine,
            prompts,
            a.recordings or Path(temporary) / "fit",
            RecordOptions(a.seeds),
            progress_bar=True,
        )
    budgets = [Budget(nfe=b) for b in a.budgets]
    now, rows = SeedPruning(), []
    for checks in (1, 2, 3, 5):
        found = tune(recording, budgets, TuneOptions(trials=a.trials, holdout=0.34, checks=checks))
        worth, keep = found.held_out, list(found.schedule.keep)
        assert worth is not None
        if not rows:
            before = worth.omega - worth.lead
            print(f"default: levels {now.levels} keep {now.keep}: omega {before:.1f} held out")
            rows.append({"levels": now.levels, "keep": now.keep, "held_out": before})
        levels = [round(recording.grid.levels[k], 3) for k in found.schedule.steps or ()]
        rows.append(
            {
                "levels": levels,
                "keep": keep,
                "fitted": found.fitted.omega,
                "held_out": worth.omega,
                "error": worth.error,
                "lead": worth.lead,
                "lead_error": worth.lead_error,
            }
        )
        print(
            f"{checks} checks at most: levels {levels} keep {keep}: omega {found.fitted.omega:.1f}"
            f" fitted, {worth.omega:.1f} ± {worth.error:.1f} held out, above the default's by"
            f" {worth.lead:.1f} ± {worth.lead_error:.1f}",
            flush=True,
        )
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
