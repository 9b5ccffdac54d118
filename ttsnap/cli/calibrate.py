"""`ttsnap calibrate`: a policy that prices compute, from a recording."""

from __future__ import annotations

from typing import Any

from ttsnap.cli import arguments
from ttsnap.cli.curves import add_recording_arguments, read_recording
from ttsnap.cli.parser import Arguments, Parser, new_parser
from ttsnap.cli.signals import left_by_sigterm
from ttsnap.options.devices import WorkerOptions

HELP = "fit a policy that prices compute to a recording"
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
    p = new_parser(DESCRIPTION)
    add_recording_arguments(p)
    p.add_argument(
        "--checks",
        type=list[int | str] | None,
        help="steps at which to score, as '[4, 8, 20]'; the last is the number of steps. '[\"draft:1@0\", 4, 8, 20]' "
        "begins with a draft of one call, as is done by default where drafts were recorded",
    )
    p.add_argument(
        "--score-cost", type=float | None,
        help="price of a decode with its rewards, in evaluations (default: by recorded FLOPs, as are drafts; 0 for NFE "
        "budgets, which count drafts by their passes)",
    )  # fmt: skip
    p.add_argument("--out", type=str, default="priced.json", help="algorithm file to write")
    p.add_argument("--overwrite", action="store_true", help="allow --out to exist already")
    return p


def run(a: Arguments) -> int:
    """Fit, write, and say how well early scores forecast."""
    import numpy as np
    from tqdm import tqdm

    from ttsnap.algorithms.pricing.forecast import written
    from ttsnap.core import utility
    from ttsnap.files.writing import write_json
    from ttsnap.results.folders import new_file
    from ttsnap.simulation.calibrate import IMAGES, calibrate

    out = new_file(a.out, a.overwrite)
    recording = read_recording(a)
    score_cost = a.score_cost if a.score_cost is not None else recorded_score_cost(recording)
    if score_cost < 0:
        raise ValueError(f"--score-cost must not be negative, got {score_cost}")
    rates = recording.price.flops
    saved = (rates.decodes - rates.pixels(recording.price.estimates)) / rates.nfe if rates.nfe > 0 else 0.0
    check_cost = max(0.0, score_cost - saved)
    by_flops = a.score_cost is None and rates.nfe > 0 and rates.draft_calls > 0
    draft_cost = rates.draft_calls / rates.nfe if by_flops else None
    with left_by_sigterm(), tqdm(desc="prices", total=len(IMAGES), unit="budget") as bar:

        def progress(done: int, of: int) -> None:
            bar.update(done - bar.n)

        forecast = calibrate(
            recording, checks=a.checks, score_cost=score_cost, check_cost=check_cost, draft_cost=draft_cost,
            utility=utility.make(a.utility), seed=a.seed, on_progress=progress,
            workers=arguments.read(WorkerOptions, a).workers,
        )  # fmt: skip
    write_json(out, {"name": "price-of-compute", "forecast": forecast.to_json()})
    known = 1 - np.array([np.var(forecast.paths[:, -1] - forecast.paths[:, j]) for j in range(len(forecast.checks))])
    names = (f"step {check}" if isinstance(check, int) else check for check in written(forecast.checks))
    shares = ", ".join(f"{name}: {r:.0%}" for name, r in zip(names, known, strict=True))
    print(f"variance of the finished reward that the scores so far explain, within a prompt: {shares}")
    print(f"a decode with its rewards counts as {score_cost:.3g} evaluations")
    print(f"wrote {out}; use it with: ttsnap generate PROMPT --algorithm {out}")
    return 0


def recorded_score_cost(recording: Any) -> float:
    """A decode with all rewards, in evaluations, by the recorded FLOPs; 0 where they were not recorded."""
    price, rates = recording.price, recording.price.flops
    if rates.nfe <= 0:
        return 0.0
    return float((rates.decodes + price.calls(len(recording.reward_names)) * rates.reward_calls) / rates.nfe)
