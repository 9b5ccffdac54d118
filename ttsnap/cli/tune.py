"""`ttsnap tune`: a pruning schedule, or a policy that prices compute, for a model and a reward, from
a recording."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ttsnap.cli import arguments
from ttsnap.cli.common import resumable
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.cli.simulate import (
    BASE,
    add_recording_arguments,
    print_curves,
    progress_bar,
    read_budgets,
    read_recording,
    read_span,
    too_few_seeds,
)
from ttsnap.files.settings import NotNegative
from ttsnap.options.option import changed, option
from ttsnap.options.record import TuneOptions

if TYPE_CHECKING:
    from ttsnap.algorithms.seed_pruning import SeedPruning
    from ttsnap.recordings.replay import Recording
    from ttsnap.simulation.calibrate import Fit
    from ttsnap.simulation.tune import Tuned

PRUNING = "seed-pruning"
"""The algorithm whose schedule is fitted."""
DEFAULT = "seed pruning as it is by default"
"""The schedule to beat, in words."""
DESCRIPTION = """Fit a pruning schedule, or prices of compute, to a recording.

Where the recording holds drafts of the initial noise (`ttsnap record --draft`), what share of the cost they are to
take is fitted, too, none included, and whether what they leave is finished without another check.

The last prompts are kept out of the fit and tell what the schedule is worth on prompts that it was not chosen on: the
table is the one that `ttsnap simulate` prints of them. The result is an algorithm file for `ttsnap generate
--algorithm`, `ttsnap simulate --algorithms` and the pipelines. On the prompts that it was fitted on, it finds no less
than best-of-N or the default schedule. Ctrl-C and SIGTERM are safe: the same command resumes.

--policy price-of-compute forecasts the finished reward from early scores. It takes one candidate one check further at
a time, always the most promising one, and moves budget from prompts that are done to prompts that are not (with
--shared). 20 prompts x 40 seeds suffice. Recorded drafts of the initial noise are the first check.

examples:
  ttsnap record --prompts-file prompts.txt --seeds 40 --out recordings/mine
  ttsnap tune recordings/mine --out tuned.json
  ttsnap generate "a red circle above a blue square" --algorithm tuned.json
  ttsnap tune recordings/mine --policy price-of-compute --out priced.json
"""


@dataclass(frozen=True)
class PolicyOptions:
    """What is fitted, and what only prices of compute need."""

    policy: Literal["seed-pruning", "price-of-compute"] = option(
        PRUNING, "what is fitted: seed-pruning, or price-of-compute"
    )
    budgets: tuple[str, ...] = option((), "to fit a schedule for (default: 2 to 20 images)")
    check_at: list[int | str] | None = option(
        None,
        "of price-of-compute: steps at which to score, as '[4, 8, 20]'; the last is the number of"
        " steps. '[\"draft:1@0\", 4, 8, 20]' begins with a draft of one call, as is done by default"
        " where drafts were recorded",
    )
    score_cost: NotNegative | None = option(
        None,
        "of price-of-compute: price of a decode with its rewards, in evaluations (default: by"
        " recorded FLOPs, as are drafts; 0 for NFE budgets, which count drafts by their passes)",
    )
    out: str = option("tuned.json", "algorithm file to write")
    overwrite: bool = option(False, "allow --out to exist already")


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    add_recording_arguments(p)
    arguments.add_options(p, PolicyOptions)
    arguments.add_options(p, TuneOptions)
    return p


def run(a: Arguments) -> int:
    """Fit a policy, write it, and say what it is worth."""
    from ttsnap.results.outputs import new_file

    options = arguments.read(TuneOptions, a)
    out = new_file(a.out, a.overwrite)
    if a.policy == PRUNING:
        if a.check_at is not None or a.score_cost is not None:
            raise ValueError("--check-at and --score-cost are for --policy price-of-compute")
        _tune(a, options, out)
    else:
        if typed := [*changed(options), *["budgets"] * bool(a.budgets)]:
            raise ValueError(
                f"{' and '.join(f'--{name}' for name in typed)} fit a schedule; leave them out with"
                f" --policy {a.policy}"
            )
        _price(a, out)
    print(f"wrote {out}; use it with: ttsnap generate PROMPT --algorithm {out}")
    return 0


def _fit(a: Arguments, advance: Callable[[int, int], None]) -> Fit:
    from ttsnap.core import utility
    from ttsnap.simulation.calibrate import Fit

    how = utility.make(a.utility)
    return Fit(how, seed=a.seed, workers=a.workers, on_progress=advance)


def _tune(a: Arguments, options: TuneOptions, out: Path) -> None:
    """Fit a schedule, write it, and say what it is worth."""
    from ttsnap.simulation.sizing import short_of_seeds
    from ttsnap.simulation.tune import split, tune

    tried = out.with_name(f"{out.name}.tried")
    recording = read_recording(a)
    budgets = read_budgets(a.budgets, recording.grid.nfe)
    with progress_bar(options.trials, "schedule") as advance, resumable(tried):
        tuned = tune(recording, budgets, options, _fit(a, advance), kept_in=tried)
    schedule = tuned.schedule
    _write(schedule, recording, out)
    tried.unlink(missing_ok=True)
    to_fit, rest = split(recording, options.holdout)
    name = out.stem if out.stem not in (BASE, PRUNING) else str(out)
    if (worth := tuned.held_out) is not None:
        first = (read_span(a.prompts).start or 0) + len(to_fit.prompts)
        print(
            f"\nthe prompts that were kept out of the fit, {first}:{first + len(rest.prompts)} of"
            " the recording:"
        )
        curves = {BASE: worth.base} | ({} if worth.default is None else {PRUNING: worth.default})
        print_curves({**curves, name: worth.schedule}, rest, a.utility)
    print(f"\n{_verdict(tuned, name, len(rest.prompts))}")
    if not math.isnan(tuned.fitted.omega):
        omega = f"{tuned.fitted.omega:.1f} ± {tuned.fitted.error:.1f}"
        print(f"on the {len(to_fit.prompts)} prompts that it was fitted on, its omega is {omega}")
    if (short := short_of_seeds(recording, schedule, budgets)) is not None:
        print(too_few_seeds("it", short, recording.seeds))


def _write(schedule: SeedPruning, recording: Recording, out: Path) -> None:
    """Write a schedule by noise levels, and print it."""
    from ttsnap.algorithms import spec_of
    from ttsnap.files.writing import write_json

    # Rounded up: a level means the first step at most as noisy.
    steps = schedule.steps or ()
    levels = tuple(min(1.0, math.ceil(recording.grid.levels[k] * 1e4) / 1e4) for k in steps)
    settings = spec_of(replace(schedule, steps=None, levels=levels))
    write_json(out, settings)
    del settings["name"]
    if recording.drafts:
        print(_about_drafts(schedule))
    (keep, _, draft_share) = schedule.settled()
    checks = f"checks at steps {list(steps)} (noise levels {list(levels)}), keeping {list(keep)}"
    print(checks if keep or draft_share else "no checks: best-of-n finds as much")
    words = ", ".join(f"{name}={value}" for name, value in settings.items())
    print(f"in Python: SeedPruning({words})")


def _price(a: Arguments, out: Path) -> None:
    """Fit price-of-compute, write it, and say how well early scores forecast."""
    from ttsnap.algorithms.pricing.forecast import written
    from ttsnap.files.writing import write_json
    from ttsnap.simulation.calibrate import IMAGES, calibrate, priced_task

    recording = read_recording(a)
    costs = priced_task(recording, a.score_cost)
    with progress_bar(len(IMAGES), "budget", desc="prices") as advance:
        forecast = calibrate(recording, a.check_at, costs, fit=_fit(a, advance))
    write_json(out, {"name": "price-of-compute", "forecast": forecast.to_json()})
    names = (f"step {at}" if isinstance(at, int) else at for at in written(forecast.checks))
    shares = zip(names, forecast.explained, strict=True)
    print(
        "variance of the finished reward that the scores so far explain, within a prompt:"
        f" {', '.join(f'{name}: {share:.0%}' for name, share in shares)}"
    )
    print(f"a decode with its rewards counts as {costs.score_cost:.3g} evaluations")


def _about_drafts(schedule: SeedPruning) -> str:
    """What the schedule does with drafts."""
    keep, _, share = schedule.settled()
    if not share:
        return "no drafts"
    calls = f"{schedule.draft_calls} call{'s' if schedule.draft_calls != 1 else ''}"
    then = "" if keep else ", and what they leave is finished"
    return f"drafts of {calls} for {share:.1%} of the cost{then}"


def _verdict(tuned: Tuned, name: str, kept_out: int) -> str:
    """One sentence: whether the schedule is better than the default, or why that is not known."""
    worth = tuned.held_out
    if not kept_out:
        return (
            "no prompt was kept out, so nothing says what it is worth on others; record more"
            " prompts"
        )
    if worth is None:
        return (
            "the rewards of the finished images do not vary within any prompt that was kept out, so"
            " nothing says what it is worth on others; record more prompts or seeds"
        )
    if worth.default is None:
        return f"the recording lacks a step at which {DEFAULT} checks, so the two are not compared"
    (by, error), known = worth.ahead, not math.isnan(worth.lead)
    what, digits = ("omega", 1) if known else ("winners' mean score", 4)
    side = "higher" if by > 0 else "lower"
    if math.isnan(error):
        return (
            f"its {what} is {abs(by):.{digits}f} {side}, but a single prompt gives no error; record"
            " more prompts"
        )
    so = f"its {what} is {abs(by):.{digits}f} ± {error:.{digits}f} {side}"
    if worth.better:
        return f"{name} is better on them than {DEFAULT}: {so}"
    return f"{name} is no better on them than {DEFAULT}: {so}; keep that, or fit on more prompts"
