"""Policies over recordings: what each would have found at each budget, with the objects that run live."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ttsnap.algorithms.best_of_n import BestOfN
from ttsnap.algorithms.options import name_of
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core import metrics
from ttsnap.core import utility as utilities
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Task
from ttsnap.core.looks import ESTIMATE
from ttsnap.core.needs import Need, declared
from ttsnap.core.particles import Utility
from ttsnap.core.protocols import Algorithm
from ttsnap.loop.budget import Budget, task_of
from ttsnap.loop.search import check_budget, dry_costs, fit
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import FAILED, Orders, draw_orders

LEDGERS = ("honest", "published")


@dataclass(frozen=True)
class Curve:
    """A method at each of B budgets, means over repeats: rewards (P, B), the winners' utility; scores (P, B, R), each
    of theirs; spent (B,), mean evaluations with decodes and rewards counted in; most (B,) of any one search."""

    budgets: tuple[Budget, ...]
    rewards: FloatArray
    scores: FloatArray
    spent: FloatArray
    most: FloatArray

    @property
    def mean(self) -> FloatArray:
        """(B,) over prompts."""
        return np.asarray(self.rewards.mean(0))

    @property
    def error(self) -> FloatArray:
        """(B,) standard error over prompts; nan with a single one, which tells nothing of others."""
        n = len(self.rewards)
        return np.asarray(self.rewards.std(0, ddof=1) / math.sqrt(n)) if n > 1 else np.full(len(self.budgets), np.nan)


def curve(
    recording: Recording,
    algorithm: Algorithm,
    budgets: Sequence[Budget | str],
    repeats: int = 10,
    *,
    shared: bool = False,
    utility: Utility = utilities.mean,
    ledger: str = "honest",
    seed: int = 0,
    orders: Iterable[Orders] | None = None,
) -> Curve:
    """Search every prompt `repeats` times at every budget; each search sees the recorded seeds in an order of its own.

    shared: the prompts of one repeat draw on one pot. ledger "published" bills a schedule as the notebooks of
    arXiv 2511.22242 do (see `published_seeds`). orders: `draw_orders` of these budgets, repeats and seed, where several
    algorithms are compared on them. Raises ValueError where the algorithm cannot run on recordings.
    """
    if ledger not in LEDGERS:
        raise ValueError(f"ledger must be one of {LEDGERS}, got {ledger!r}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if lacks := declared(algorithm.needs) - recording.offers:
        if lacks <= {Need.ROLLOUT, Need.DRAFT}:
            looks = " and ".join(sorted(need.value for need in lacks))
            raise ValueError(f"{name_of(algorithm)} looks at candidates by {looks}, which this recording has no scores "
                             "of; record with --draft or --looks")  # fmt: skip
        raise ValueError(
            f"{name_of(algorithm)} makes candidates of candidates: a recording holds only what was denoised once"
        )
    rewards, scores, spent, most = [], [], [], []
    costs, orders = (
        dry_costs(algorithm, ReplayEngine(recording)),
        orders or draw_orders(recording, budgets, repeats, seed),
    )
    for budget, order in zip((Budget.parse(b).on(recording.grid) for b in budgets), orders, strict=True):
        task, sized = sized_for(recording, algorithm, budget, shared=shared, ledger=ledger, costs=costs)
        lookup, searches = order.play(recording, sized.n or 1), len(order)
        pot = len(recording.prompts) if shared else None
        out = lockstep(sized, lookup, searches, task, rewards=len(recording.reward_names), utility=utility, pot=pot)
        total = out.spent(task)
        rewards.append(out.reward.reshape(repeats, -1).mean(0))
        everyone, end = np.arange(searches), np.full((searches, 1), task.grid.steps)
        won = lookup(everyone, out.winner[:, None], end, ESTIMATE)[:, 0]
        scores.append(won.reshape(repeats, -1, won.shape[-1]).mean(0))
        spent.append(total.mean())
        most.append(total.max())
    parsed = tuple(Budget.parse(b) for b in budgets)
    return Curve(parsed, np.stack(rewards, 1), np.stack(scores, 1), np.array(spent), np.array(most))


def best_of_n_curve(
    recording: Recording,
    budgets: Sequence[Budget | str],
    *,
    utility: Utility = utilities.mean,
) -> Curve:
    """Best-of-N at each budget, exactly: the expected maximum over all subsets of the recorded seeds.

    Both ledgers bill it in full. Raises ValueError for a utility that compares images, and for failed scores.
    """
    final = utility(recording.final)
    if np.isnan(final).any():
        raise ValueError(FAILED)
    if utility is utilities.rank_sum:
        raise ValueError("exact best-of-N needs a utility that scores each image by itself; rank_sum has none")
    engine, columns, scores, spent = ReplayEngine(recording), [], [], []
    for budget in (Budget.parse(b).on(recording.grid) for b in budgets):
        task = _task(budget, engine)
        one = task.grid.nfe + task.score_cost
        n = min(recording.seeds, int(task.allowance / one + 1e-9))
        columns.append(metrics.best_of_n(final, n))
        each = np.moveaxis(recording.final, -1, 0)
        scores.append(metrics.best_of_n(np.broadcast_to(final, each.shape), n, of=each).T)
        spent.append(n * one)
    parsed = tuple(Budget.parse(b) for b in budgets)
    return Curve(parsed, np.stack(columns, 1), np.stack(scores, 1), np.array(spent), np.array(spent))


def sized_for(
    recording: Recording,
    algorithm: Algorithm,
    budget: Budget,
    *,
    shared: bool = False,
    ledger: str = "honest",
    costs: Callable[[int], Cost] | None = None,
) -> tuple[Task, Algorithm]:
    """The task under a budget, and the algorithm with as many seeds as it affords, at most its n and those recorded.

    Where a budget does not pay for the checks of a single seed, that is best-of-one: what a search does then. costs: as
    `fit` takes them, where there are several budgets.
    """
    engine = ReplayEngine(recording)
    budget = budget.on(recording.grid)
    task = _task(budget, engine, shared)
    if algorithm.n is None and ledger == "published":
        seeds = min(recording.seeds, published_seeds(algorithm, task))
        assert isinstance(algorithm, SeedPruning)  # published_seeds refuses all others
        return task, PublishedPruning.of(algorithm, seeds)
    most = min(recording.seeds, algorithm.n or recording.seeds)
    if isinstance(algorithm, PriceOfCompute):  # it keeps to its budget with any number of seeds
        return task, dataclasses.replace(algorithm, n=most)
    costs = costs or dry_costs(algorithm, engine)
    free = dataclasses.replace(algorithm, n=None)  # type: ignore[type-var]
    sized = fit(free, engine, budget, most=most, costs=costs)
    unaffordable = sized.n == 1 and budget.shortfall(costs(1), engine.price) is not None
    return task, BestOfN(1) if unaffordable else sized


def short_of_seeds(recording: Recording, algorithm: Algorithm, budgets: Sequence[Budget | str]) -> Budget | None:
    """The first of these budgets that pays for more seeds than were recorded, so that less is found than would be
    live; None where the recorded ones do for all, or the algorithm starts a number of its own."""
    if algorithm.n is not None or isinstance(algorithm, PriceOfCompute):
        return None
    engine = ReplayEngine(recording)
    costs = dry_costs(algorithm, engine)
    for budget in (Budget.parse(b) for b in budgets):
        sized = fit(algorithm, engine, budget.on(recording.grid), most=recording.seeds + 1, costs=costs)
        if sized.n is not None and sized.n > recording.seeds:
            return budget
    return None


def _task(budget: Budget, engine: ReplayEngine, shared: bool = False) -> Task:
    """The task under a budget that pays for an image and that a recording can count."""
    check_budget(budget, engine)
    task = task_of(budget, engine, shared=shared)
    if not np.isfinite(task.allowance):
        known = "400nfe, 20images or 2pflop" if engine.price.flops.nfe > 0 else "400nfe or 20images"
        raise ValueError(f"a budget of {budget} caps nothing that this recording counts; give one like {known}")
    return task


@dataclass(frozen=True)
class PublishedPruning(SeedPruning):
    """Seed pruning with the survivors of the notebooks released with arXiv 2511.22242: `round`, halves to even."""

    @classmethod
    def of(cls, schedule: SeedPruning, n: int) -> PublishedPruning:
        """The same schedule, with n seeds."""
        return cls(**dataclasses.asdict(schedule) | {"n": n})

    def survivors(self, n: int, share: float) -> int:
        return round(n * share)


def published_seeds(algorithm: Algorithm, task: Task) -> int:
    """Seeds of a pruning schedule as the notebooks released with arXiv 2511.22242 bill them.

    A score at step s is billed s evaluations, not s + 1, and the finished image K - 1; the bill counts survivors as
    fractions, while those who stay are whole numbers (PublishedPruning).
    Best-of-N is billed in full. It flatters pruning: here for comparison with published figures only.
    """
    if not isinstance(algorithm, SeedPruning) or algorithm.steps is None:
        raise ValueError("the published ledger bills pruning schedules given in steps only")
    share, billed, at = 1.0, 0.0, 0
    for keep, step in zip((*algorithm.keep, 1.0), (*algorithm.steps, task.grid.steps - 1), strict=True):
        billed += share * (step - at + task.score_cost)
        share, at = share * keep, step
    return max(1, int(task.allowance / billed))


def require_varied(recording: Recording, utility: Utility = utilities.mean) -> None:
    """ValueError for scores that failed, and where no prompt's finished images differ in `utility`: then every search
    finds the same, and there is nothing to compare or to fit."""
    if recording.failed:
        raise ValueError(FAILED)
    if not metrics.varied(utility(recording.final)).any():
        raise ValueError(
            "the rewards of the finished images do not vary within any prompt "
            f"({len(recording.prompts)} prompts x {recording.seeds} seeds), so that every search finds the same; "
            "record more seeds, harder prompts, or another reward"
        )


@dataclass(frozen=True)
class Comparison:
    """A method against best-of-N: omega in percent with its standard error (bootstrap over prompts), the N at which
    best-of-N equals it at the largest budget, and the budget at which it equals best-of-N there.

    omega is nan where best-of-N gains nothing from the smallest budget to the largest, its error with one prompt.
    """

    omega: float
    error: float
    equivalent_n: float
    matching_budget: float


def compare(method: Curve, baseline: Curve, recording: Recording, utility: Utility = utilities.mean) -> Comparison:
    """Both over the same rising budgets, at least three, in one unit, which is that of `matching_budget`."""
    amounts = rising(method.budgets)
    omega, error = _omega(amounts, method.rewards, baseline.rewards)
    return Comparison(
        omega,
        error,
        metrics.equivalent_n(float(method.mean[-1]), utility(recording.final)),
        metrics.matching_budget(amounts, method.mean, float(baseline.mean[-1])),
    )


def lead(method: Curve, other: Curve, baseline: Curve) -> tuple[float, float]:
    """By how much the omega of a method is above another's, and the standard error of that: both on the same resampled
    prompts, as prompts differ more than methods do. Curves as in `compare`."""
    return _omega(rising(method.budgets), method.rewards - other.rewards + baseline.rewards, baseline.rewards)


def _omega(amounts: FloatArray, method: FloatArray, baseline: FloatArray) -> tuple[float, float]:
    """omega of rewards (P, B) over budgets (B,), and its standard error by resampling the prompts."""
    omega, n = metrics.omega(amounts, method.mean(0), baseline.mean(0)), len(method)
    draws = np.random.default_rng(0).integers(n, size=(200, n))
    resampled = np.array([metrics.omega(amounts, method[d].mean(0), baseline[d].mean(0)) for d in draws])
    resampled = resampled[np.isfinite(resampled)]  # without draws of prompts that are all easy
    return omega, float(np.std(resampled)) if n > 1 and len(resampled) else float("nan")


def rising(budgets: Sequence[Budget]) -> FloatArray:
    """(B,) in their unit. ValueError unless there are three or more, rising, in one unit."""
    unit = unit_of(budgets)
    amounts = np.array([float(dataclasses.asdict(b)[unit]) for b in budgets])
    if len(amounts) < 3 or (np.diff(amounts) <= 0).any():
        raise ValueError(f"a comparison takes 3 budgets or more, rising, got {', '.join(map(str, budgets))}")
    return amounts


def unit_of(budgets: Sequence[Budget]) -> str:
    """The one field in which all of these budgets are given. ValueError where they are not."""
    units = {name for b in budgets for name, cap in dataclasses.asdict(b).items() if cap is not None}
    if len(units) != 1:
        raise ValueError(f"budgets of a curve are in one unit, got {', '.join(str(b) for b in budgets)}")
    return units.pop()
