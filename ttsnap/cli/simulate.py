"""`ttsnap simulate`: policies compared over a recording."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ttsnap.cli import arguments
from ttsnap.cli.common import left_by_signals
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.extras import install
from ttsnap.files.settings import Count, Natural
from ttsnap.files.writing import markdown
from ttsnap.options.engine import WorkerOptions
from ttsnap.options.option import option
from ttsnap.options.selection import SelectionOptions
from ttsnap.request.request import fitted_steps

if TYPE_CHECKING:
    from ttsnap.core.protocols import Algorithm
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


DESCRIPTION = """Compare policies over a recording: what each would have found at each budget, without a model.

A row of the table is a budget per prompt, a column a policy: the mean reward of the image that it returns, with its
standard error over prompts. Best-of-N is exact: the mean over all subsets of the recorded seeds. The others search the
recorded seeds in random orders, --repeats times per prompt. With three budgets or more, these rows follow:

  omega, %              the area between a policy's curve and best-of-N's, over
                        the area that best-of-N gains from the smallest budget
                        on. 25 means a quarter more gain for the same compute;
                        below 0 is worse
  equals N              the N at which best-of-N is as good as the policy at
                        the largest budget
  equals best-of-n ...  the budget from which the policy is as good as
                        best-of-N at the largest one

Budgets are counted as they are live: a score at step s takes s + 1 evaluations, a draft its calls of the drafter, and
with FLOP budgets every decode and reward call is paid. A recording of S seeds cannot tell what more than S would find:
keep budgets below S / 2 images. Searches that draft start several times as many seeds.

examples:
  ttsnap record --prompts-file prompts.txt --seeds 40 --out recordings/mine
  ttsnap simulate recordings/mine
  ttsnap simulate recordings/mine --algorithms seed-pruning tuned.json \\
      --budgets 40:400:40nfe --out curves
  ttsnap simulate recordings/mine --algorithms priced.json --shared \\
      --budgets 5images 10images 20images
  ttsnap simulate flux_hps.safetensors --algorithms authors.json \\
      --budgets 400:4000:200tflop --ledger published
"""
_AXES = {"flops": (1e12, "TFLOPs"), "nfe": (1, "denoiser evaluations")}
"""Of units of work: what a plot divides them by, and calls them."""


@dataclass(frozen=True)
class SimulateOptions:
    """What is compared, at which budgets."""

    algorithms: tuple[str, ...] = option(
        (),
        "names, .json files such as those of `ttsnap tune`, or file.py:Class (default: seed-pruning;"
        " with drafts and without where they were recorded)",
    )
    budgets: tuple[str, ...] = option(
        (),
        "per prompt, rising, as 100nfe 200nfe, or a range 400:4000:200tflop (default: 2 to 20 whole"
        " images)",
    )
    repeats: Count = option(20, "searches per prompt and budget")
    shared: bool = option(False, "price-of-compute: all prompts share one budget")
    ledger: Literal["honest", "published"] = option(
        "honest", "count all that is computed (honest), or as the TTSnap notebooks (published)"
    )
    out: str | None = option(None, "folder for curves.csv and curves.png")
    overwrite: bool = option(False, "allow --out to hold files already")


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    add_recording_arguments(p)
    arguments.add_options(p, SimulateOptions)
    return p


def run(a: Arguments) -> int:
    """Print the table; write the curves where --out says."""
    from ttsnap.results.outputs import reserved

    with (
        left_by_signals(),
        reserved(a.out, "", a.overwrite) if a.out else nullcontext() as out,
    ):
        return _compare(a, out)


def _compare(a: Arguments, out: Path | None) -> int:
    from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
    from ttsnap.core import utility
    from ttsnap.simulation.simulate import (
        Method,
        Study,
        best_of_n_curve,
        require_varied,
        rising,
        unit_of,
    )

    recording = read_recording(a)
    combine = utility.make(a.utility)
    require_varied(recording, combine)
    budgets = read_budgets(a.budgets, recording.grid.nfe)
    algorithms = _algorithms(a, recording)
    if len(budgets) > 2:
        rising(budgets)
    if out is not None:
        unit_of(budgets)  # of the plot; said now, not after the searches
    base = best_of_n_curve(recording, budgets, utility=combine)
    methods = tuple(
        (
            Method(algorithm, a.shared, "honest")
            if isinstance(algorithm, PriceOfCompute)
            else Method(algorithm, False, a.ledger)
        )
        for algorithm in algorithms.values()
    )
    study = Study(recording, methods, tuple(budgets), a.repeats, combine, a.seed)
    with progress_bar(len(methods) * len(budgets), "point", leave=False) as advance:
        results = study.curves(arguments.read(WorkerOptions, a).workers, advance)
    curves = {BASE: base, **dict(zip(algorithms, results, strict=True))}
    print_curves(curves, recording, a.utility, a.ledger)
    _warn(a, recording, algorithms, budgets)
    if out is not None:
        _write(out, curves, utility.described(a.utility, recording.reward_names))
        print(f"curves.csv and curves.png in {out}")
    return 0


def _warn(
    a: Arguments,
    recording: Recording,
    algorithms: Mapping[str, Algorithm],
    budgets: Sequence[Budget],
) -> None:
    """Print where figures are not those of live searches."""
    from ttsnap.algorithms.best_of_n import BestOfN
    from ttsnap.simulation.sizing import short_of_budget, short_of_seeds

    for name, algorithm in algorithms.items():
        if (steps := fitted_steps(algorithm)) not in (None, recording.denoising_steps):
            print(
                f"{name} was tuned for {steps} denoising steps, and this recording has"
                f" {recording.denoising_steps}"
            )
    for name, algorithm in {BASE: BestOfN(), **algorithms}.items() if a.ledger == "honest" else ():
        if (short := short_of_budget(recording, algorithm, budgets)) is not None:
            print(
                f"up to {short} the budget does not pay for the {algorithm.n} seeds that {name} was"
                " given: here it takes as many as are paid for, live it starts more and is cut off"
            )
        if (short := short_of_seeds(recording, algorithm, budgets)) is not None:
            print(too_few_seeds(name, short, recording.seeds))


def _algorithms(a: Arguments, recording: Recording) -> dict[str, Algorithm]:
    """What is compared with best-of-N, by the names that tables have: of files their stems where
    these differ."""
    from ttsnap.algorithms import make_algorithm, own_algorithm

    names = a.algorithms or ["seed-pruning"]
    stems = [Path(name).stem for name in names]
    algorithms = {
        name if stems.count(stem) > 1 or stem == BASE else stem: make_algorithm(own_algorithm(name))
        for stem, name in zip(stems, names, strict=True)
        if name != BASE
    }
    if not a.algorithms and recording.draft_calls:
        algorithms["without drafts"] = make_algorithm("seed-pruning", draft_share=0.0)
    return algorithms


def _write(out: Path, curves: Mapping[str, Curve], reward: str) -> None:
    """curves.csv, and where matplotlib is there curves.png."""
    from ttsnap.files.writing import write_csv, write_whole

    head = ["algorithm", "budget", "reward", "standard_error", "spent_mean", "spent_most"]
    rows = [
        [name, *row]
        for name, c in curves.items()
        for row in zip(c.budgets, c.mean, c.error, c.spent, c.most, strict=True)
    ]
    write_csv(out / "curves.csv", head, rows)
    figure = _figure(curves, reward)
    write_whole(out / "curves.png", lambda file: figure.savefig(file, format="png", dpi=160))


def _figure(curves: Mapping[str, Curve], reward: str) -> Any:
    """The winners' reward against the budget, and what it is above best-of-N's. ValueError without
    matplotlib."""
    from ttsnap.simulation.simulate import unit_of

    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(f"curves.csv is written; for the plot, {install('plot')}") from None
    unit = unit_of(next(iter(curves.values())).budgets)
    scale, label = _AXES.get(unit, (1, unit))
    figure = Figure(figsize=(10, 4), layout="constrained")
    level, gain = figure.subplots(1, 2)
    base = curves[BASE]
    x = [getattr(b, unit) / scale for b in base.budgets]
    for i, (name, c) in enumerate(curves.items()):
        style: dict[str, Any] = (
            {"color": "0.45", "linestyle": "--"} if c is base else {"color": f"C{i - 1}"}
        )
        level.plot(x, c.mean, label=name, marker="o", markersize=3.5, linewidth=1.6, **style)
        # Prompts differ far more than policies do: the error that counts is that of the difference,
        # prompt by prompt.
        excess = c.rewards - base.rewards
        error = excess.std(0, ddof=min(1, len(excess) - 1)) / len(excess) ** 0.5
        gain.plot(x, excess.mean(0), marker="o", markersize=3.5, linewidth=1.6, **style)
        band = excess.mean(0) - error, excess.mean(0) + error
        gain.fill_between(x, *band, alpha=0.12, linewidth=0, color=style["color"])
    level.set_ylabel(f"{reward} of the winner, mean over prompts")
    gain.set_ylabel("the same, less best-of-N's, ± standard error")
    level.legend(frameon=False, loc="lower right")
    for axes in (level, gain):
        axes.set_xlabel(f"budget per prompt, {label}")
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
