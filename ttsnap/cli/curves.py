"""What the studies of a recording share (simulate, tune): its arguments, budgets,
progress and tables."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttsnap.cli import arguments
from ttsnap.cli.common import left_by_signals
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.files.settings import Natural
from ttsnap.files.writing import markdown
from ttsnap.options.engine import WorkerOptions
from ttsnap.options.option import option
from ttsnap.options.selection import SelectionOptions

if TYPE_CHECKING:
    from ttsnap.loop.budget import Budget
    from ttsnap.recordings.replay import Recording
    from ttsnap.simulation.simulate import Curve

BASE = "best-of-n"
"""The algorithm that others are compared with, as tables and plots call it."""
MOST_BUDGETS = 1000


@dataclass(frozen=True)
class StudyOptions:
    """Which part of a recording is studied."""

    prompts: str = option(":", "which prompts, as 0:20")
    seeds: str = option(":", "which seeds, as 0:40")
    scores: str = option("noise_aware", "of a published tensor: noise_aware or base scores")
    seed: Natural = option(0, "decides the random orders in which recorded seeds are searched")


def add_recording_arguments(p: Parser) -> None:
    """The recording, which part of it, and how its rewards become one."""
    p.add_argument(
        "recording",
        type=str,
        help="folder written by `ttsnap record`, or a published reward tensor",
    )
    arguments.add_config(p)
    arguments.add_options(p, StudyOptions)
    arguments.add_options(p, SelectionOptions, "utility")
    arguments.add_options(p, WorkerOptions, "workers")


def read_recording(a: Arguments) -> Recording:
    """The recording, cut to the prompts and seeds of the options."""
    from ttsnap.recordings.folder import load_recording

    whole = load_recording(a.recording, scores=a.scores)
    part = whole.select(read_span(a.prompts), read_span(a.seeds))
    if not part.scores.size:
        there = f"{len(whole.prompts)} prompts x {whole.seeds} seeds"
        raise ValueError(
            f"--prompts {a.prompts} --seeds {a.seeds} leaves nothing of the recorded {there}"
        )
    return part


def read_span(text: str) -> slice:
    """'0:20' -> slice(0, 20)."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if not match:
        raise ValueError(f"cannot read range {text!r}; write it like 0:20")
    start, stop = (int(part) if part else None for part in match.groups())
    return slice(start, stop)


def read_budgets(texts: Sequence[str], evaluations: int) -> list[Budget]:
    """Budgets, with ranges from:to:step spelled out; by default 2 to 20 images of so many
    evaluations."""
    from ttsnap.loop.budget import Budget

    budgets = []
    number = r"(\d+\.?\d*)"
    for text in texts or [f"{n * evaluations}nfe" for n in (2, 3, 5, 8, 12, 20)]:
        match = re.fullmatch(rf"{number}:{number}:{number}([a-z]*)", text)
        if not match:
            budgets.append(Budget.parse(text))
            continue
        low, high, step = (float(part) for part in match.groups()[:3])
        if not 0 < step <= high - low < MOST_BUDGETS * step:
            raise ValueError(
                f"cannot read budgets {text!r:.80}; write them like 400:4000:200tflop, at most"
                f" {MOST_BUDGETS} at once"
            )
        count = int((high - low) / step + 1e-9) + 1
        budgets += [Budget.parse(f"{low + i * step:.10g}{match.group(4)}") for i in range(count)]
    return budgets


@contextmanager
def progress_bar(total: int, unit: str, **how: Any) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that calls what it is given with (done, of); signals unwind the work."""
    from tqdm import tqdm

    with left_by_signals(), tqdm(total=total, unit=unit, **how) as bar:

        def advance(done: int, _: int) -> None:
            bar.update(done - bar.n)

        yield advance


def print_curves(
    curves: Mapping[str, Curve], recording: Recording, spec: Any, ledger: str = "honest"
) -> None:
    """A table of curves by name, best-of-n among them: a row a budget, and what follows from three
    or more.

    given: the utility, as --utility has it.
    """
    from ttsnap.core import utility
    from ttsnap.simulation.simulate import compare

    base = curves[BASE]
    many = f"{len(recording.prompts)} prompt{'s' if len(recording.prompts) > 1 else ''}"
    reward = utility.described(spec, recording.reward_names)
    print(f"{many} x {recording.seeds} seeds, {ledger} ledger, the winner's score: {reward}")
    rows = [
        [str(budget), *(_with_error(c.mean[i], c.error[i], 4) for c in curves.values())]
        for i, budget in enumerate(base.budgets)
    ]
    undefined = False
    if len(base.budgets) > 2:
        ordered = sorted(curves.values(), key=lambda c: c is not base)
        best, *versus = (compare(c, base, recording, utility.make(spec)) for c in ordered)
        undefined = math.isnan(best.omega)
        matching = [_shown(v.matching_budget, base.budgets) for v in versus]
        rows += [
            [
                "omega, %",
                "-" if undefined else "0",
                *(_with_error(v.omega, v.error, 1) for v in versus),
            ],
            ["equals N", *(_shown(v.equivalent_n) for v in (best, *versus))],
            [f"equals best-of-n at {base.budgets[-1]} from", "", *matching],
        ]
    print(markdown(["budget", *curves], rows))
    if undefined:
        print(
            "omega is not defined: best-of-n gains nothing from the smallest budget to the largest"
        )


def too_few_seeds(name: str, budget: Budget, seeds: int) -> str:
    """The warning for a method that would start more seeds under this budget than were recorded."""
    return (
        f"from {budget} on {name} would start more seeds than the {seeds} that were recorded, so"
        " that these figures are below what it would find live; record more seeds, or take smaller"
        " --budgets"
    )


def _with_error(value: float, error: float, digits: int) -> str:
    """ "0.8210 ± 0.0317"; without the error where it is not known, and "-" for no number."""
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def _shown(amount: float, budgets: Sequence[Budget] = ()) -> str:
    """A number, or the amount of a budget in the unit of these."""
    from ttsnap.simulation.simulate import unit_of

    if amount == float("inf"):
        return "not reached"
    if not budgets:
        return f"{amount:.4g}"
    unit: dict[str, Any] = {unit_of(budgets): amount}
    return str(dataclasses.replace(budgets[0], **unit))
