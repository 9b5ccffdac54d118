"""Fit a pruning schedule (drafts, checks, keep ratios) to a recording: random search, then changes to the best. Several
recordings, each with another number of denoising steps, let it choose that number, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core import utility as utilities
from ttsnap.core.arrays import FloatArray
from ttsnap.core.metrics import varied
from ttsnap.core.particles import Utility
from ttsnap.loop.budget import Budget
from ttsnap.recordings.replay import Recording
from ttsnap.simulation.calibrate import as_one, enlarge
from ttsnap.simulation.orders import Orders, draw_orders
from ttsnap.simulation.processes import working
from ttsnap.simulation.schedules import Space, change, draw
from ttsnap.simulation.simulate import Curve, best_of_n_curve, compare, curve, lead, require_varied, rising

REPEATS = 20
"""Searches per prompt and budget by which a schedule is judged: the default of `ttsnap simulate`."""
EXPLORED = 0.4
"""Share of the trials that are drawn at random; each of the others changes one of the best so far."""
_VARYING = ("versions", "batch_size", "decode_batch_size", "device", "dtype", "draft", "draft_guidance")
"""What recordings to choose denoising steps from may differ in, besides these."""


@dataclass(frozen=True)
class Worth:
    """What a schedule is worth on some prompts, as `ttsnap simulate` finds it on the recorded seeds.

    Numbers are nan with fewer than three budgets, and where best-of-N gains nothing; errors also with a single prompt.
    """

    base: Curve
    """Best-of-N; of several recordings, over that with most steps."""
    default: Curve | None
    """Seed pruning with its default schedule, over the same; None where a check of that was not recorded."""
    schedule: Curve
    omega: float
    """Of the schedule against best-of-N."""
    error: float
    lead: float
    """How much the omega is above the default's; nan without a default."""
    lead_error: float

    @property
    def ahead(self) -> tuple[float, float]:
        """The lead over the default and its error; where there is none, those of the winners' utility."""
        if self.default is None or not math.isnan(self.lead):
            return self.lead, self.lead_error
        each = (self.schedule.rewards - self.default.rewards).mean(1)
        return float(each.mean()), float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan

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
    """On the others; None where there are none, or where no prompt's finished images differ in reward."""
    tried: int
    """Number of schedules that were compared."""


def tune(
    recordings: Recording | Sequence[Recording],
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
    of one. It also says whether checks follow at all. Of several recordings (`comparable`), the schedule says by its
    `denoising_steps` which number of steps is best; budgets in images are those of most steps. Best-of-N at each number
    is among the finalists: a schedule without checks. The last `holdout` share of the prompts (`split`) is kept out of
    the fit and tells what the winner is worth on others. Fitting uses recordings enlarged to `seeds` seeds
    (`calibrate.enlarge`), so that large budgets do not use up the recorded ones; `judge` uses the recorded seeds only.

    workers: processes that judge schedules in parallel (`processes.working`); the winner is the same. on_progress:
    called with (done, of) trials. Raises ValueError with too few prompts, seeds or budgets, for failed scores, and
    where the rewards to fit on do not vary.
    """
    if utility is utilities.rank_sum:
        raise ValueError("rank_sum scores no image by itself; tune with mean or weights")
    given = comparable([recordings] if isinstance(recordings, Recording) else recordings)
    to_fit, rest = zip(*(split(recording, holdout) for recording in given), strict=True)
    for recording in (*given, *to_fit):
        require_varied(recording, utility)
    spaces = {
        r.denoising_steps: Space(np.flatnonzero(r.scored[:-1]), checks, r.drafts, r.denoising_steps) for r in given
    }
    able = [space for space in spaces.values() if len(space.steps) or space.drafts]
    if not able:
        raise ValueError("the recording scored only finished images: there is nothing to prune on")
    rng = np.random.default_rng(seed)
    wide, again = (_enlarged(to_fit, utility, seeds, rng) for _ in range(2))  # the second ones judge the finalists
    if len(given) > 1:
        budgets = [Budget.parse(budget).on(given[0].grid) for budget in budgets]
    if len(budgets) > 2:
        rising([Budget.parse(b) for b in budgets])  # as `judge` will: refused before the long search

    pool: list[tuple[float, SeedPruning]] = []

    def judged(schedule: SeedPruning, gained: float) -> None:
        pool.append((gained, schedule))
        pool.sort(key=lambda entry: -entry[0])
        if on_progress is not None:
            on_progress(len(pool), trials)

    repeats = max(1, 600 // len(to_fit[0].prompts))
    first = _Judge(wide, tuple(budgets), repeats, seed)
    drawn = [draw(rng, able[i % len(able)]) for i in range(math.ceil(trials * EXPLORED))]
    with working(first, workers) as gains:
        for schedule, gained in zip(drawn, gains(drawn), strict=True):
            judged(schedule, gained)
    for _ in range(trials - len(drawn)):  # each is drawn once those before it are judged
        promising = pool[min(int(rng.exponential(4)), len(pool) - 1)][1]
        changed = change(rng, promising, spaces[promising.denoising_steps])
        judged(changed, first(changed))
    finals = [schedule for _, schedule in pool[:20]] + [space.best_of_n for space in spaces.values()]
    with working(_Judge(again, tuple(budgets), 3 * repeats, seed), workers) as gains:
        best = finals[int(np.argmax(list(gains(finals))))]

    def worth(parts: Sequence[Recording]) -> Worth:
        return judge(recorded_for(best, parts), best, budgets, utility, seed, parts[0])

    known = bool(rest[0].prompts) and bool(varied(utility(rest[0].final)).any())
    return Tuned(best, worth(to_fit), worth(rest) if known else None, trials)


@dataclass(frozen=True)
class _Judge:
    """Called with a schedule, its gain over best-of-N on the first of the enlarged recordings; all schedules see the
    same orders."""

    recordings: Sequence[Recording]
    budgets: tuple[Budget | str, ...]
    repeats: int
    seed: int

    def __call__(self, schedule: SeedPruning) -> float:
        recording = recorded_for(schedule, self.recordings)
        found = curve(recording, schedule, self.budgets, self.repeats, orders=self._orders)
        return gain(found.mean, self._base)

    @cached_property
    def _orders(self) -> list[Orders]:
        return draw_orders(self.recordings[0], self.budgets, self.repeats, self.seed)

    @cached_property
    def _base(self) -> FloatArray:
        return best_of_n_curve(self.recordings[0], self.budgets).mean


def comparable(recordings: Sequence[Recording]) -> list[Recording]:
    """The recordings, that with most denoising steps first, with as many seeds as all of them have.

    ValueError where several differ in more than their denoising steps, or not in these."""
    found = sorted(recordings, key=lambda r: -(r.denoising_steps or 0))
    steps = [r.denoising_steps for r in found]
    if len(found) > 1 and (None in steps or len(set(steps)) < len(steps)):
        raise ValueError(f"give recordings with another number of denoising steps each, got {steps}")
    if not all(_but_steps(r) == _but_steps(found[0]) for r in found):
        raise ValueError("the recordings differ in more than their denoising steps: record the same prompts, from the "
                         "same first seed, with the same rewards, model and arguments")  # fmt: skip
    return [r.select(seeds=slice(min(r.seeds for r in found))) for r in found]


def _but_steps(recording: Recording) -> tuple[object, ...]:
    """What recordings have in common that differ in their denoising steps."""
    setting = {**recording.info, **recording.call}
    compared = {k: v for k, v in setting.items() if k not in ("call", "num_inference_steps", *_VARYING)}
    return recording.prompts, recording.reward_names, recording.first_seed, compared


def recorded_for(schedule: SeedPruning, recordings: Sequence[Recording]) -> Recording:
    """The recording with the denoising steps of a schedule."""
    return next(r for r in recordings if r.denoising_steps == schedule.denoising_steps)


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
    usual: Recording | None = None,
) -> Worth:
    """What a schedule is worth on the prompts of a recording. ValueError for failed scores.

    usual: the recording of the same prompts over which best-of-N and the default schedule search, if another."""
    usual = usual or recording
    base, plain = best_of_n_curve(usual, budgets, utility=utility), SeedPruning()
    mine = curve(recording, schedule, budgets, REPEATS, utility=utility, seed=seed)
    scored = all(usual.scored[usual.grid.step_at(level)] for level in plain.levels)
    default = curve(usual, plain, budgets, REPEATS, utility=utility, seed=seed) if scored else None
    omega = error = above = above_error = float("nan")
    if len(budgets) > 2:
        versus = compare(mine, base, usual, utility)
        omega, error = versus.omega, versus.error
        if default is not None:
            above, above_error = lead(mine, default, base)
    return Worth(base, default, mine, omega, error, above, above_error)


def gain(found: FloatArray, base: FloatArray) -> float:
    """What tuning maximises: the excess over best-of-N at all budgets, relative to best-of-N's own gain where there are
    several."""
    gained = float((base - base[0]).sum()) if len(base) > 1 else 1.0
    if gained <= 0:
        raise ValueError("best-of-N gains nothing from the smallest budget to the largest; give budgets further apart")
    return float((found - base).sum()) / gained


def _enlarged(
    recordings: Sequence[Recording], utility: Utility, seeds: int, rng: np.random.Generator
) -> tuple[Recording, ...]:
    """The recordings of a single reward, the utility; enlarged where they have fewer seeds, by the same draws."""
    made, before = [], rng.bit_generator.state
    for recording in recordings:
        rng.bit_generator.state, columns = before, utility(recording.columns)
        few = recording.seeds < seeds
        made.append(enlarge(columns, recording, seeds, rng) if few else as_one(recording, columns))
    return tuple(made)
