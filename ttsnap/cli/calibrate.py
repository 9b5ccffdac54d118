"""`ttsnap calibrate`: a policy that prices compute, from a recording."""

from __future__ import annotations

from ttsnap.cli import arguments
from ttsnap.cli.curves import add_file_arguments, add_recording_arguments, progress, read_recording
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.files.settings import NotNegative
from ttsnap.options.engine import WorkerOptions

DESCRIPTION = """Fit the price-of-compute policy to a recording: how early scores forecast the finished reward.

It takes one candidate one check further at a time, always the most promising one, and moves budget from prompts that
are done to prompts that are not (with --shared). 20 prompts x 40 seeds suffice. Calibrate for each model,
step count and reward. Where the recording holds drafts of the initial noise (`ttsnap record --draft`), they are the
first check.

example:
  ttsnap calibrate recordings/mine --out priced.json
  ttsnap generate --prompts-file prompts.txt --algorithm priced.json --shared \\
      --budget 200nfe
"""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    add_recording_arguments(p)
    p.add_argument(
        "--checks",
        type=list[int | str] | None,
        help=(
            "steps at which to score, as '[4, 8, 20]'; the last is the number of steps."
            " '[\"draft:1@0\", 4, 8, 20]' begins with a draft of one call, as is done by default"
            " where drafts were recorded"
        ),
    )
    p.add_argument(
        "--score-cost",
        type=NotNegative | None,
        help=(
            "price of a decode with its rewards, in evaluations (default: by recorded FLOPs, as are"
            " drafts; 0 for NFE budgets, which count drafts by their passes)"
        ),
    )
    add_file_arguments(p, "priced.json")
    return p


def run(a: Arguments) -> int:
    """Fit, write, and say how well early scores forecast."""
    import numpy as np

    from ttsnap.algorithms.pricing.forecast import written
    from ttsnap.core import utility
    from ttsnap.files.writing import write_json
    from ttsnap.loop.budget import Budget, task_of
    from ttsnap.recordings.replay import ReplayEngine
    from ttsnap.results.folders import new_file
    from ttsnap.simulation.calibrate import IMAGES, calibrate

    out = new_file(a.out, a.overwrite)
    recording = read_recording(a)
    # costs in evaluations, 0 where FLOPs are not known
    by_flops = task_of(Budget(flops=1.0), ReplayEngine(recording))
    score_cost, draft_cost = by_flops.score_cost, by_flops.draft_cost or None
    if a.score_cost is not None:
        score_cost, draft_cost = a.score_cost, None
    check_cost = max(0.0, score_cost - (by_flops.score_cost - by_flops.checking))
    with progress(len(IMAGES), "budget", desc="prices") as advance:
        forecast = calibrate(
            recording,
            checks=a.checks,
            score_cost=score_cost,
            check_cost=check_cost,
            draft_cost=draft_cost,
            utility=utility.make(a.utility),
            seed=a.seed,
            on_progress=advance,
            workers=arguments.read(WorkerOptions, a).workers,
        )
    write_json(out, {"name": "price-of-compute", "forecast": forecast.to_json()})
    known = 1 - np.array(
        [np.var(forecast.paths[:, -1] - forecast.paths[:, j]) for j in range(len(forecast.checks))]
    )
    names = (
        f"step {check}" if isinstance(check, int) else check for check in written(forecast.checks)
    )
    shares = ", ".join(f"{name}: {r:.0%}" for name, r in zip(names, known, strict=True))
    print(
        f"variance of the finished reward that the scores so far explain, within a prompt: {shares}"
    )
    print(f"a decode with its rewards counts as {score_cost:.3g} evaluations")
    print(f"wrote {out}; use it with: ttsnap generate PROMPT --algorithm {out}")
    return 0
