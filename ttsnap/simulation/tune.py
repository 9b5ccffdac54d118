"""Fit a pruning schedule (drafts, checks, keep ratios) to a recording: random search, then changes
to the best."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.arrays import FloatArray
from ttsnap.core.metrics import varied
from ttsnap.files.unbroken import Unbroken
from ttsnap.loop.budget import Budget
from ttsnap.options.record import TuneOptions
from ttsnap.recordings.kept import KeptNumbers
from ttsnap.recordings.replay import Recording
from ttsnap.simulation.calibrate import DEFAULT, Fit, as_one, enlarge
from ttsnap.simulation.orders import Orders, draw_orders
from ttsnap.simulation.processes import working
from ttsnap.simulation.schedules import Space, change, draw
from ttsnap.simulation.simulate import (
    Curve,
    best_of_n_curve,
    compare,
    curve,
    lead,
    rising,
)
from ttsnap.version import __version__

REPEATS = 20
"""Searches per prompt and budget by which a schedule is judged: the default of `ttsnap
simulate`."""
EXPLORED = 0.4
"""Share of the trials that are drawn at random; each of the others changes one of the best so
far."""
SEARCHES = 600
"""For each budget, of all prompts together, by which a schedule is fitted; finalists get three
times as many."""
OPTIONS = TuneOptions()
FINALISTS = 20
"""Of the schedules that were tried, those that are judged once more."""


@dataclass(frozen=True)
class Worth:
    """What a schedule is worth on some prompts, as `ttsnap simulate` finds it on the recorded
    seeds.

    Numbers are nan with fewer than three budgets, and where best-of-N gains nothing; errors also
    with a single prompt.
    """

    base: Curve
    """Best-of-N."""
    default: Curve | None
    """Seed pruning with its default schedule; None where a check of that was not recorded."""
    schedule: Curve
    omega: float
    """Of the schedule against best-of-N."""
    error: float
    lead: float
    """How much the omega is above the default's; nan without a default."""
    lead_error: float

    @property
    def ahead(self) -> tuple[float, float]:
        """The lead over the default and its error; where there is none, those of the winners'
        utility."""
        if self.default is None or not math.isnan(self.lead):
            return self.lead, self.lead_error
        each = (self.schedule.rewards - self.default.rewards).mean(1)
        return float(each.mean()), (
            float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        )

    @property
    def loses(self) -> bool:
        """Whether best-of-N or the default finds more."""
        over = (
            float((self.schedule.mean - self.base.mean).sum())
            if math.isnan(self.omega)
            else self.omega
        )
        return over < 0 or (self.default is not None and self.ahead[0] < 0)

    @property
    def better(self) -> bool:
        """Whether the schedule is above the default by more than one standard error."""
        ahead, error = self.ahead
        return ahead > error


@dataclass(frozen=True)
class Tuned:
    """The best schedule, and what it is worth."""

    schedule: SeedPruning
    fitted: Worth
    """On the prompts that it was chosen on: too high, by what was fitted to their accidents."""
    held_out: Worth | None
    """On the others; None where there are none, or where no prompt's finished images differ in
    reward."""
    tried: int
    """Number of schedules that were compared."""


def tune(
    recording: Recording,
    budgets: Sequence[Budget | str],
    options: TuneOptions = OPTIONS,
    fit: Fit = DEFAULT,
    kept_in: Path | None = None,
) -> Tuned:
    """One schedule for all of these budgets, the best of the trials.

    Where drafts of the initial noise were recorded, the fit includes their share of the cost (none,
    too) and the calls of one. It also says whether checks follow at all. Best-of-N and the default
    schedule are among the finalists; neither beats the winner on the prompts that it was fitted on.
    The prompts that are held out (`split`) tell what the winner is worth on others.

    kept_in: a file of what was found so far, by which an interrupted call of the same arguments
    resumes; Ctrl-C and SIGTERM wait for the trial at hand. Raises ValueError with too few prompts,
    seeds or budgets, for failed scores, and where the rewards to fit on do not vary.
    """
    to_fit, rest = split(recording, options.holdout)
    for part in (recording, to_fit):
        fit.check(part)
    steps = np.flatnonzero(recording.scored[:-1])
    space = Space(steps, options.checks, recording.drafts, recording.denoising_steps)
    if not len(space.steps) and not space.drafts:
        raise ValueError("the recording scored only finished images: there is nothing to prune on")
    if len(budgets) > 2:
        # as `judge` will: refused before the long search
        rising([Budget.parse(b) for b in budgets])
    rng = np.random.default_rng(fit.seed)
    # the second ones judge the finalists
    wide, again = (_enlarged(to_fit, fit, rng) for _ in range(2))
    repeats = max(1, SEARCHES // len(to_fit.prompts))
    first = _Judge(wide, tuple(budgets), repeats, fit.seed)
    last = _Judge(again, tuple(budgets), 3 * repeats, fit.seed)
    trials = options.trials
    drawn = [draw(rng, space) for _ in range(math.ceil(trials * EXPLORED))]
    sure = [s for s in (space.best_of_n, default_on(recording)) if s is not None]
    about = _arguments(
        recording, budgets, options, fit, wide.columns.tobytes() + again.columns.tobytes()
    )
    many = trials + FINALISTS + len(sure)
    with Unbroken() as stopping, KeptNumbers(kept_in, "gains", about, many) as kept:
        gains = _Gains(kept, trials, fit.on_progress, stopping)
        with working(first, fit.workers) as judging:
            pool = [*zip(gains.of(drawn, judging), drawn, strict=True)]
        for _ in range(trials - len(drawn)):  # each is drawn once those before it are judged
            pool.sort(key=lambda entry: -entry[0])
            promising = pool[min(int(rng.exponential(4)), len(pool) - 1)][1]
            changed = change(rng, promising, space)
            pool += [(gained, changed) for gained in gains.of([changed], partial(map, first))]
        ranked = sorted(pool, key=lambda entry: -entry[0])
        finals = [schedule for _, schedule in ranked[:FINALISTS]] + sure
        with working(last, fit.workers) as judging:
            order = np.argsort(-np.array([*gains.of(finals, judging)]), kind="stable")

    for i in order:  # at least one of best-of-N and the default does not lose to the other
        best = finals[i]
        fitted = judge(to_fit, best, budgets, fit)
        if not fitted.loses:
            break
    known = rest.prompts and varied(fit.utility(rest.final)).any()
    return Tuned(best, fitted, judge(rest, best, budgets, fit) if known else None, trials)


@dataclass
class _Gains:
    """What schedules gain, one after the other: those that are kept already, then as judged."""

    kept: KeptNumbers
    trials: int
    on_progress: Callable[[int, int], None]
    stopping: Callable[[], bool]
    at: int = 0
    """How many there were."""

    def of(
        self, schedules: list[SeedPruning], judging: Callable[..., Iterable[float]]
    ) -> Iterator[float]:
        """The gain of each."""
        kept = self.kept
        there = kept.numbers[self.at : min(kept.done, self.at + len(schedules))]
        for gained in itertools.chain(there, judging(schedules[len(there) :])):
            if self.at == kept.done:
                kept.add(np.array([gained]))
            self.at += 1
            if self.at <= self.trials:
                self.on_progress(self.at, self.trials)
            if self.stopping():
                raise KeyboardInterrupt
            yield float(gained)


def _arguments(
    recording: Recording,
    budgets: Sequence[Budget | str],
    options: TuneOptions,
    fit: Fit,
    columns: bytes,
) -> dict[str, str]:
    """What must be the same to go on."""
    asked = f"{budgets}, {options.trials} trials, {options.checks} checks, seed {fit.seed}"
    of = repr((recording.grid, recording.price, [*recording.looks])).encode()
    data = hashlib.sha256(of + columns).hexdigest()
    return {"arguments": f"{asked}, ttsnap {__version__}", "recordings": data}


@dataclass(frozen=True)
class _Judge:
    """Called with a schedule, its gain over best-of-N on an enlarged recording; all schedules see
    the same orders."""

    recording: Recording
    budgets: tuple[Budget | str, ...]
    repeats: int
    seed: int

    def __call__(self, schedule: SeedPruning) -> float:
        found = curve(self.recording, schedule, self.budgets, self.repeats, orders=self._orders)
        return gain(found.mean, self._base)

    @cached_property
    def _orders(self) -> list[Orders]:
        return draw_orders(self.recording, self.budgets, self.repeats, self.seed)

    @cached_property
    def _base(self) -> FloatArray:
        return best_of_n_curve(self.recording, self.budgets).mean


def split(recording: Recording, holdout: float) -> tuple[Recording, Recording]:
    """The prompts to fit on, and the last `holdout` share to judge on. ValueError with fewer than 2
    to fit on."""
    prompts = len(recording.prompts)
    fit_prompts = prompts - int(holdout * prompts)
    if not 0 <= holdout < 1 or fit_prompts < 2:
        raise ValueError(
            f"holdout {holdout} of {prompts} prompts leaves {fit_prompts} to fit on; at least 2 are"
            " needed"
        )
    return recording.select(slice(0, fit_prompts)), recording.select(slice(fit_prompts, None))


def judge(
    recording: Recording,
    schedule: SeedPruning,
    budgets: Sequence[Budget | str],
    fit: Fit = DEFAULT,
) -> Worth:
    """What a schedule is worth on the prompts of a recording. ValueError for failed scores."""
    base = best_of_n_curve(recording, budgets, utility=fit.utility)

    def curve_of(schedule: SeedPruning) -> Curve:
        return curve(recording, schedule, budgets, REPEATS, utility=fit.utility, seed=fit.seed)

    plain = default_on(recording)
    settled = schedule.settled()
    exact = not settled.keep and not settled.draft_share
    mine = base if exact else curve_of(schedule)
    default = None if plain is None else curve_of(plain)
    omega = error = above = above_error = float("nan")
    if len(budgets) > 2:
        versus = compare(mine, base, recording, fit.utility)
        omega = versus.omega
        error = versus.error
        if default is not None:
            above, above_error = lead(mine, default, base)
    return Worth(base, default, mine, omega, error, above, above_error)


def default_on(recording: Recording) -> SeedPruning | None:
    """The default schedule, its check as a step; None where that was not recorded."""
    keep, levels, _ = SeedPruning().settled()
    steps = tuple(recording.grid.step_at(level) for level in levels)
    known = all(recording.scored[step] for step in steps)
    if known:
        return SeedPruning(keep=keep, steps=steps, denoising_steps=recording.denoising_steps)
    return None


def gain(found: FloatArray, base: FloatArray) -> float:
    """What tuning maximises: the excess over best-of-N at all budgets, relative to best-of-N's own
    gain where there are several."""
    gained = float((base - base[0]).sum()) if len(base) > 1 else 1.0
    if gained <= 0:
        raise ValueError(
            "best-of-N gains nothing from the smallest budget to the largest; give budgets further"
            " apart"
        )
    return float((found - base).sum()) / gained


def _enlarged(recording: Recording, fit: Fit, rng: np.random.Generator) -> Recording:
    """The recording of a single reward, the utility; enlarged where it has fewer seeds."""
    columns = fit.utility(recording.columns)
    if recording.seeds < fit.seeds:
        return enlarge(columns, recording, fit.seeds, rng)
    return as_one(recording, columns)
