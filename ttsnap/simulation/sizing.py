"""Numbers of seeds that a budget affords over a recording, billed as live or as published."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttsnap.algorithms.best_of_n import BestOfN
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.grid import Task
from ttsnap.core.protocols import Algorithm
from ttsnap.loop.budget import Budget, task_of
from ttsnap.loop.search import Costs, check_budget, dry_costs, fit
from ttsnap.recordings.replay import Recording, ReplayEngine


def sized_for(
    recording: Recording,
    algorithm: Algorithm,
    budget: Budget,
    *,
    shared: bool = False,
    ledger: str = "honest",
    costs: Costs | None = None,
) -> tuple[Task, Algorithm]:
    """The task under a budget, and the algorithm with as many seeds as the budget affords.

    The seeds are at most the algorithm's n and those recorded. Where a budget does not pay for the
    checks of a single seed, the algorithm is best-of-one, as in a live search. costs: as of `fit`,
    where there are several budgets.
    """
    engine = ReplayEngine(recording)
    budget = budget.on(engine.grid, engine.price.start)
    task = task_for(budget, engine, shared)
    if ledger == "published":
        seeds = min(
            recording.seeds, published_seeds(algorithm, task), algorithm.n or recording.seeds
        )
        assert isinstance(algorithm, SeedPruning)  # published_seeds refuses all others
        return task, PublishedPruning.of(algorithm, seeds)
    most = min(recording.seeds, algorithm.n or recording.seeds)
    if isinstance(algorithm, PriceOfCompute):  # it keeps to its budget with any number of seeds
        return task, dataclasses.replace(algorithm, n=most)
    costs = costs or dry_costs(algorithm, engine)
    free = dataclasses.replace(algorithm, n=None)  # type: ignore[type-var]
    sized = fit(free, engine, budget, most=most, costs=costs)
    unaffordable = sized.n == 1 and budget.shortfall(costs(1, budget), engine.price) is not None
    return task, BestOfN(1) if unaffordable else sized


def short_of_seeds(
    recording: Recording, algorithm: Algorithm, budgets: Sequence[Budget | str]
) -> Budget | None:
    """The first budget under which the algorithm would start more seeds than were recorded; None
    where there is none.

    From there on a simulation finds less than a live search. The price of compute starts as many
    seeds as it finds worth it, so that at least those that best-of-N could finish are wanted.
    """
    if isinstance(algorithm, PriceOfCompute):
        algorithm = BestOfN()
    if algorithm.n is not None and algorithm.n <= recording.seeds:
        return None
    free = dataclasses.replace(algorithm, n=None)  # type: ignore[type-var]
    engine = ReplayEngine(recording)
    costs = dry_costs(free, engine)
    for budget in (Budget.parse(b) for b in budgets):
        held = budget.on(engine.grid, engine.price.start)
        sized = fit(free, engine, held, most=recording.seeds + 1, costs=costs)
        if sized.n is not None and sized.n > recording.seeds:
            return budget
    return None


def short_of_budget(
    recording: Recording, algorithm: Algorithm, budgets: Sequence[Budget | str]
) -> Budget | None:
    """The last budget that does not pay for the n seeds that the algorithm was given; None where
    all do.

    Simulated, the algorithm starts as many as are paid for; live, it starts all and is cut off by
    the budget."""
    if algorithm.n is None or isinstance(algorithm, PriceOfCompute):
        return None
    engine = ReplayEngine(recording)
    costs = dry_costs(algorithm, engine)
    wanting = None
    for budget in (Budget.parse(b) for b in budgets):
        held = budget.on(engine.grid, engine.price.start)
        if held.shortfall(costs(algorithm.n, held), engine.price) is not None:
            wanting = budget
    return wanting


def task_for(budget: Budget, engine: ReplayEngine, shared: bool = False) -> Task:
    """The task under a budget that pays for an image and that a recording can count."""
    check_budget(budget, engine)
    task = task_of(budget, engine, shared=shared)
    if not np.isfinite(task.allowance):
        known = "400nfe, 20images or 2pflop" if engine.price.flops.nfe > 0 else "400nfe or 20images"
        raise ValueError(
            f"a budget of {budget} caps nothing that this recording counts; give one like {known}"
        )
    return task


@dataclass(frozen=True)
class PublishedPruning(SeedPruning):
    """Seed pruning with the survivors of the notebooks released with arXiv 2511.22242: `round`,
    halves to even."""

    @classmethod
    def of(cls, schedule: SeedPruning, n: int) -> PublishedPruning:
        """The same schedule, with n seeds."""
        return cls(**dataclasses.asdict(schedule) | {"n": n})

    def survivors(self, n: int, share: float) -> int:
        return round(n * share)


def published_seeds(algorithm: Algorithm, task: Task) -> int:
    """Seeds of a pruning schedule as the notebooks released with arXiv 2511.22242 bill them.

    A score at step s is billed s evaluations, not s + 1, and the finished image K - 1. The bill
    counts fractions of survivors, while whole ones stay (PublishedPruning). Best-of-N is billed in
    full. This flatters pruning: use it for comparison with published figures only.
    """
    if not isinstance(algorithm, SeedPruning) or algorithm.steps is None:
        raise ValueError("the published ledger bills pruning schedules given in steps only")
    share = 1.0
    billed = 0.0
    at = 0
    for keep, step in zip(
        (*algorithm.settled().keep, 1.0), (*algorithm.steps, task.grid.steps - 1), strict=True
    ):
        billed += share * (step - at + task.score_cost)
        share = share * keep
        at = step
    return max(1, int(task.allowance / billed))
