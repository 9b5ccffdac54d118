"""`ttsnap tune`: a pruning schedule for a model and a reward, from a recording."""

from __future__ import annotations

import math

from jsonargparse import ArgumentParser, Namespace

from ttsnap.cli.help import new_parser
from ttsnap.cli.simulate import add_recording_arguments, read_budgets, read_recording

HELP = "fit a pruning schedule to a recording"
DESCRIPTION = """Fit a pruning schedule (when to check, how many to keep) to a recording.

The last prompts are kept out of the fit and tell what the schedule is worth on prompts that it was not chosen on. The
result is an algorithm file for `ttsnap generate --algorithm`, `ttsnap simulate --algorithms` and the pipelines.

example:
  ttsnap record --prompts-file prompts.txt --seeds 40 --out recordings/mine
  ttsnap tune recordings/mine --out tuned.json
  ttsnap generate "a red circle above a blue square" --algorithm tuned.json
"""


def parser() -> ArgumentParser:
    """The command's arguments."""
    p = new_parser(DESCRIPTION)
    add_recording_arguments(p)
    p.add_argument("--budgets", type=str, nargs="+", default=[], help="to fit for (default: 2 to 20 images)")
    p.add_argument("--trials", type=int, default=400, help="schedules to try")
    p.add_argument("--checks", type=int, default=5, help="most checks in a schedule")
    p.add_argument("--holdout", type=float, default=0.3, help="share of the prompts to keep out of the fit")
    p.add_argument("--out", type=str, default="tuned.json", help="algorithm file to write")
    p.add_argument("--overwrite", action="store_true", help="allow --out to exist already")
    return p


def run(a: Namespace) -> int:
    """Search, write the winner, say what it is worth."""
    from tqdm import tqdm

    from ttsnap import utility
    from ttsnap.folders import new_file
    from ttsnap.outputs import write_json
    from ttsnap.tune import tune

    if a.trials < 1 or a.checks < 1:
        raise ValueError(f"--trials and --checks must be at least 1, got {a.trials} and {a.checks}")
    out = new_file(a.out, a.overwrite)
    recording = read_recording(a)
    budgets = read_budgets(a.budgets, recording.grid.nfe)
    with tqdm(total=a.trials, unit="schedule") as bar:

        def progress(done: int, of: int) -> None:
            bar.update(done + 1 - bar.n)

        found = tune(
            recording, budgets, trials=a.trials, holdout=a.holdout, checks=a.checks, utility=utility.make(a.utility),
            seed=a.seed, on_progress=progress,
        )  # fmt: skip
    schedule = found.schedule
    # Rounded up: a level means the first step at most as noisy.
    levels = [min(1.0, math.ceil(recording.grid.levels[k] * 1e4) / 1e4) for k in schedule.steps or ()]
    write_json(out, {"name": "seed-pruning", "keep": list(schedule.keep), "levels": levels})
    print(f"checks at steps {list(schedule.steps or ())} (noise levels {levels}), keeping {list(schedule.keep)}")
    print(f"gain over best-of-N: {found.fitted:+.1%} on the prompts fitted on, of what best-of-N gains in that range")
    if math.isnan(found.held_out):
        print("no prompt was kept out, so nothing says what it is worth on others; record more prompts")
    else:
        one = math.isnan(found.error)
        where = "on the one prompt kept out" if one else f"± {found.error:.1%} on the prompts kept out"
        print(f"                     {found.held_out:+.1%} {where}")
    print(f"wrote {out}; use it with: ttsnap generate PROMPT --algorithm {out}")
    return 0
