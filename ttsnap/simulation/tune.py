"""Fit a pruning schedule (drafts, steps, keep ratios) to a recording: random search, then changes to the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core import utility as utilities
from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.metrics import varied
from ttsnap.core.particles import Utility
from ttsnap.loop.budget import Budget
from ttsnap.recordings.replay import Recording
from ttsnap.simulation.calibrate import as_one, enlarge
from ttsnap.simulation.orders import Orders, draw_orders
from ttsnap.simulation.processes import working
from ttsnap.simulation.simulate import Curve, best_of_n_curve, compare, curve, lead, require_varied, rising

REPEATS = 20
"""Searches per prompt and budget by which a schedule is judged: the default of `ttsnap simulate`."""
EXPLORED = 0.4
"""Share of the trials that are drawn at random; each of the others changes one of the best so far."""


@dataclass(frozen=True)
class Worth:
    """What a schedule is worth on some prompts, as `ttsnap simulate` finds it on the recorded seeds.

    Numbers are nan with fewer than three budgets, and where best-of-N gains nothing; errors also with a single prompt.
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
    def better(self) -> bool:
        """Whether the schedule is above the default by more than one standard error."""
        return self.lead > self.lead_error


@dataclass(frozen=True)
class Tuned:
    """The best schedule, and what it is worth."""

    schedule: SeedPruning
    fitted: Worth
    """On the prompts that it was chosen on: too high, by what was fitted to their accidents."""
    held_out: Worth | None
    """On the others; None where there are none, or where no prompt's finished images differ in reward."""
    tried: int
    """Number of schedules that were compared."""


def tune(
    recording: Recording,
    budgets: Sequence[Budget | str],
    *,
    trials: int = 400,
    holdout: float = 0.3,
    checks: int = 5,
    seeds: int = 200,
    utility: Utility = utilities.mean,
    seed: int = 0,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tuned:
    """One schedule for all of these budgets, the best of `trials` with at most `checks` checks.

    Where drafts of the initial noise were recorded, the fit includes their share of the cost (none, too) and the calls
    of one. It also says whether checks follow at all. The last `holdout` share of the prompts (`split`) is kept out of
    the fit and tells what the winner is worth on others. Fitting uses recordings enlarged to `seeds` seeds
    (`calibrate.enlarge`), so that large budgets do not use up the recorded ones; `judge` uses the recorded seeds only.

    workers: processes that judge schedules in parallel (`processes.working`); the winner is the same. on_progress:
    called with (done, of) trials. Raises ValueError with too few prompts, seeds or budgets, for failed scores, and
    where the rewards to fit on do not vary.
    """
    if utility is utilities.rank_sum:
        raise ValueError("rank_sum scores no image by itself; tune with mean or weights")
    to_fit, rest = split(recording, holdout)
    require_varied(recording, utility)
    require_varied(to_fit, utility)
    rng = np.random.default_rng(seed)
    wide, again = (_single(to_fit, utility, seeds, rng) for _ in range(2))  # the second one judges the finalists
    space = Space(np.flatnonzero(wide.scored[:-1]), checks, recording.drafts)
    if not len(space.steps) and not space.drafts:
        raise ValueError("the recording scored only finished images: there is nothing to prune on")
    if len(budgets) > 2:
        rising([Budget.parse(b) for b in budgets])  # as `judge` will: refused before the long search

    pool: list[tuple[float, SeedPruning]] = []

    def judged(schedule: SeedPruning, gained: float) -> None:
        pool.append((gained, schedule))
        pool.sort(key=lambda entry: -entry[0])
        if on_progress is not None:
            on_progress(len(pool), trials)

    repeats = max(1, 600 // len(to_fit.prompts))
    first = _Judge(wide, tuple(budgets), repeats, seed)
    drawn = [_draw(rng, space) for _ in range(math.ceil(trials * EXPLORED))]
    with working(first, workers) as gains:
        for schedule, gained in zip(drawn, gains(drawn), strict=True):
            judged(schedule, gained)
    for _ in range(trials - len(drawn)):  # each is drawn once those before it are judged
        changed = _change(rng, pool[min(int(rng.exponential(4)), len(pool) - 1)][1], space)
        judged(changed, first(changed))
    finals = [schedule for _, schedule in pool[:20]]
    with working(_Judge(again, tuple(budgets), 3 * repeats, seed), workers) as gains:
        best = finals[int(np.argmax(list(gains(finals))))]
    held_out = None
    if len(rest.prompts) and varied(utility(rest.final)).any():
        held_out = judge(rest, best, budgets, utility, seed)
    return Tuned(best, judge(to_fit, best, budgets, utility, seed), held_out, trials)


@dataclass(frozen=True)
class _Judge:
    """Called with a schedule, its gain over best-of-N on an enlarged recording; all schedules see the same orders."""

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
    """The prompts to fit on, and the last `holdout` share to judge on. ValueError with fewer than 2 to fit on."""
    prompts = len(recording.prompts)
    fit_prompts = prompts - int(holdout * prompts)
    if not 0 <= holdout < 1 or fit_prompts < 2:
        raise ValueError(
            f"holdout {holdout} of {prompts} prompts leaves {fit_prompts} to fit on; at least 2 are needed"
        )
    return recording.select(slice(0, fit_prompts)), recording.select(slice(fit_prompts, None))


def judge(
    recording: Recording,
    schedule: SeedPruning,
    budgets: Sequence[Budget | str],
    utility: Utility,
    seed: int,
) -> Worth:
    """What a schedule is worth on the prompts of a recording. ValueError for failed scores."""

    def curve_of(algorithm: SeedPruning) -> Curve:
        return curve(recording, algorithm, budgets, REPEATS, utility=utility, seed=seed)

    base, mine = best_of_n_curve(recording, budgets, utility=utility), curve_of(schedule)
    plain = SeedPruning()
    steps = [recording.grid.step_at(level) for level in plain.levels] if plain.steps is None else plain.steps
    default = curve_of(plain) if all(recording.scored[step] for step in steps) else None
    omega = error = above = above_error = float("nan")
    if len(budgets) > 2:
        versus = compare(mine, base, recording, utility)
        omega, error = versus.omega, versus.error
        if default is not None:
            above, above_error = lead(mine, default, base)
    return Worth(base, default, mine, omega, error, above, above_error)


def gain(found: FloatArray, base: FloatArray) -> float:
    """What tuning maximises: the excess over best-of-N at all budgets, relative to best-of-N's own gain."""
    gained = float((base - base[0]).sum())
    if gained <= 0:
        raise ValueError("best-of-N gains nothing from the smallest budget to the largest; give budgets further apart")
    return float((found - base).sum()) / gained


def _single(recording: Recording, utility: Utility, seeds: int, rng: np.random.Generator) -> Recording:
    """The recording of a single reward, the utility; enlarged where it has fewer seeds."""
    columns = utility(recording.columns)
    return enlarge(columns, recording, seeds, rng) if recording.seeds < seeds else as_one(recording, columns)


class Space(NamedTuple):
    """What schedules are made of."""

    steps: IntArray
    """(k,) steps whose estimates were scored."""
    most: int
    """The most checks at these steps."""
    drafts: tuple[int, ...]
    """Calls of the recorded drafts, rising."""


def _draw(rng: np.random.Generator, space: Space) -> SeedPruning:
    if not len(space.steps):
        return _with_drafts(SeedPruning(None, (), steps=()), _draw_share(rng), int(rng.choice(space.drafts)))
    n = int(rng.integers(1, min(space.most, len(space.steps)) + 1))
    steps = np.sort(rng.choice(space.steps, n, replace=False))
    share = np.exp(rng.uniform(np.log(0.03), np.log(0.5)))  # that reaches the end
    keep = np.exp(np.log(share) * rng.dirichlet(np.ones(n)))
    if not space.drafts:
        return _schedule(steps, keep)
    drafts = _draw_share(rng) if rng.random() > 0.2 else 0.0
    after = slice(0 if drafts and rng.random() < 0.3 else n)  # checks that follow the drafts
    return _with_drafts(_schedule(steps[after], keep[after]), drafts, int(rng.choice(space.drafts)))


def _change(rng: np.random.Generator, schedule: SeedPruning, space: Space) -> SeedPruning:
    steps, keep = list(schedule.steps or ()), list(schedule.keep)
    free = [int(k) for k in space.steps if k not in steps]
    least = 0 if space.drafts and schedule.draft_share else 1
    what = rng.random()
    if what < 0.4 and free and steps:
        i = int(rng.integers(len(steps)))
        steps[i] = min(free, key=lambda k: abs(k - steps[i]) + rng.random() * 3)
    elif what < 0.55 and free and len(steps) < space.most:
        steps.append(int(rng.choice(free)))
        keep.append(float(rng.uniform(0.4, 0.95)))
    elif what < 0.7 and len(steps) > least:
        i = int(rng.integers(len(steps)))
        del steps[i], keep[i]
    order = np.argsort(steps)
    scaled = np.exp(np.log(np.array(keep)) * np.exp(0.25 * rng.standard_normal(len(keep))))
    changed = _schedule(np.array(steps, int)[order], scaled[order])
    if not space.drafts:
        return changed
    share, calls = schedule.draft_share, schedule.draft_calls or space.drafts[0]
    if rng.random() < 0.1:
        share = _draw_share(rng) if not share else 0.0 if steps else share
    elif rng.random() < 0.2:
        calls = int(rng.choice(space.drafts))
    return _with_drafts(changed, share * np.exp(0.3 * rng.standard_normal()), calls)


def _draw_share(rng: np.random.Generator) -> float:
    """The share of the cost that goes to drafts."""
    return float(np.exp(rng.uniform(np.log(0.05), np.log(0.7))))


def _with_drafts(schedule: SeedPruning, share: float, calls: int) -> SeedPruning:
    if not share:
        return replace(schedule, draft_share=0.0)
    return replace(schedule, draft_share=round(float(min(max(share, 0.03), 0.8)), 3), draft_calls=calls)


def _schedule(steps: np.ndarray, keep: np.ndarray) -> SeedPruning:
    return SeedPruning(None, tuple(np.clip(keep, 0.05, 0.98).round(3).tolist()), steps=tuple(steps.tolist()))
