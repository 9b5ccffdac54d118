"""A recording that policies are compared on: its arguments, budgets, and tables of what they find."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from ttsnap.cli import arguments
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.options.devices import WorkerOptions
from ttsnap.options.search import SearchOptions

BASE = "best-of-n"
"""With what searches are compared, and how tables and plots call it."""
MOST_BUDGETS = 1000


def add_recording_arguments(p: Parser) -> None:
    """The recording and which part of it; ."""
    p.add_argument("recording", type=str, help="folder written by `ttsnap record`, or a published reward tensor")
    arguments.add_config(p)
    p.add_argument("--prompts", type=str, default=":", help="which prompts, as 0:20")
    p.add_argument("--seeds", type=str, default=":", help="which seeds, as 0:40")
    p.add_argument(
        "--scores", type=str, default="noise_aware", help="of a published tensor: noise_aware or base scores"
    )
    arguments.add_options(p, SearchOptions, "utility")
    p.add_argument("--seed", type=int, default=0, help="decides the random orders in which recorded seeds are searched")
    arguments.add_options(p, WorkerOptions, "workers")


def print_curves(curves: dict[str, Any], recording: Any, utility: Any, reward: str, ledger: str = "honest") -> None:
    """A table of curves by name, best-of-n among them: a row a budget, and what follows from three or more. `reward` is
    the utility in words."""
    from ttsnap.simulation.simulate import compare

    base = curves[BASE]
    budgets = base.budgets
    prompts = f"{len(recording.prompts)} prompt{'s' if len(recording.prompts) > 1 else ''}"
    print(f"{prompts} x {recording.seeds} seeds, {ledger} ledger, the winner's score: {reward}")
    rows = [[str(b), *(_with_error(c.mean[i], c.error[i], 4) for c in curves.values())] for i, b in enumerate(budgets)]
    if len(budgets) > 2:
        best, *versus = (compare(c, base, recording, utility) for c in (base, *_others(curves)))
        rows += [
            ["omega, %", "-" if math.isnan(best.omega) else "0", *(_with_error(v.omega, v.error, 1) for v in versus)],
            ["equals N", *(_number(v.equivalent_n) for v in (best, *versus))],
            [f"equals best-of-n at {budgets[-1]} from", "", *(_as_budget(v.matching_budget, budgets) for v in versus)],
        ]
    print_table(["budget", *curves], rows)
    if len(budgets) > 2 and math.isnan(best.omega):
        print("omega is not defined: best-of-n gains nothing from the smallest budget to the largest")


def too_few_seeds(name: str, budget: Any, seeds: int) -> str:
    """What to say of a method that would start more seeds under this budget than were recorded."""
    return (
        f"from {budget} on {name} would start more seeds than the {seeds} that were recorded, so that these figures "
        "are below what it would find live; record more seeds, or take smaller --budgets"
    )


def _others(curves: dict[str, Any]) -> list[Any]:
    return [c for name, c in curves.items() if name != BASE]


def read_recording(a: Arguments) -> Any:
    """The recording, cut to the prompts and seeds asked for."""
    from ttsnap.recordings.folder import load_recording

    whole = load_recording(a.recording, scores=a.scores)
    part = whole.select(read_span(a.prompts), read_span(a.seeds))
    if not part.scores.size:
        there = f"{len(whole.prompts)} prompts x {whole.seeds} seeds"
        raise ValueError(f"--prompts {a.prompts} --seeds {a.seeds} leaves nothing of the recorded {there}")
    return part


def read_span(text: str) -> slice:
    """'0:20' -> slice(0, 20)."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if not match:
        raise ValueError(f"cannot read range {text!r}; write it like 0:20")
    start, stop = (int(part) if part else None for part in match.groups())
    return slice(start, stop)


def read_budgets(given: Sequence[str], evaluations: int) -> list[Any]:
    """Budgets, with ranges from:to:step spelled out."""
    from ttsnap.loop.budget import Budget

    budgets, number = [], r"(\d+\.?\d*)"
    for text in given or [f"{n * evaluations}nfe" for n in (2, 3, 5, 8, 12, 20)]:
        match = re.fullmatch(rf"{number}:{number}:{number}([a-z]*)", text)
        if not match:
            budgets.append(Budget.parse(text))
            continue
        low, high, step = (float(part) for part in match.groups()[:3])
        if not 0 < step <= high - low < MOST_BUDGETS * step:
            raise ValueError(
                f"cannot read budgets {text!r:.80}; write them like 400:4000:200tflop, at most {MOST_BUDGETS} at once"
            )
        count = int((high - low) / step + 1e-9) + 1
        budgets += [Budget.parse(f"{low + i * step:.10g}{match.group(4)}") for i in range(count)]
    return budgets


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns aligned."""
    table = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for first, *rest in table:
        print("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]))


def _as_budget(amount: float, budgets: Sequence[Any]) -> str:
    """An amount in the budgets' unit, in words."""
    from ttsnap.simulation.simulate import unit_of

    if amount == float("inf"):
        return "not reached"
    return str(dataclasses.replace(budgets[0], **{unit_of(budgets): amount}))


def _with_error(value: float, error: float, digits: int) -> str:
    """ "0.8210 ± 0.0317"; without the error where it is not known, and "-" for no number."""
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def _number(value: float) -> str:
    return "not reached" if value == float("inf") else f"{value:.4g}"
