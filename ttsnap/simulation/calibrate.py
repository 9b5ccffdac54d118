"""Fit a price-of-compute policy to a small recording (20 prompts x 40 seeds suffice)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ttsnap.algorithms.pricing.fitting import fit as fitted
from ttsnap.algorithms.pricing.forecast import Forecast, read_checks
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core import metrics
from ttsnap.core import utility as utilities
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Rates
from ttsnap.core.grid import Task
from ttsnap.core.looks import ESTIMATE, Draft, EstimatorAt, estimates
from ttsnap.core.utility import Utility
from ttsnap.loop.budget import Budget, task_of
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.processes import working
from ttsnap.simulation.simulate import require_varied

IMAGES = (2, 3, 5, 8, 12, 20, 30)
"""Budgets, in whole images, for which the price of a shared budget is found by default."""
_SMOOTHING = 0.5


def default_checks(steps: int) -> tuple[int, ...]:
    """Grid steps at which estimates are scored: densest in the first half, where ranking
    settles."""
    checks = np.round(np.array([0.1, 0.2, 0.25, 0.3, 0.35, 0.45, 0.55, 0.7, 0.85]) * steps).astype(
        int
    )
    return (*sorted({int(k) for k in checks if k < steps}), steps)


@dataclass(frozen=True)
class Fit:
    """How something is fitted to a recording."""

    utility: Utility = utilities.mean
    seeds: int = 200
    """Per prompt, to which the recording is enlarged, so that large budgets do not use up the
    recorded ones."""
    seed: int = 0
    workers: int = 1
    """Processes that work in parallel (`processes.working`), to the same digits."""
    on_progress: Callable[[int, int], None] = lambda done, of: None
    """Called with (done, of) parts of the work."""

    def check(self, recording: Recording) -> None:
        """ValueError for a utility that compares images, for failed scores, and where the rewards
        do not vary."""
        if self.utility is utilities.rank_sum:
            raise ValueError("rank_sum scores no image by itself; fit with mean or weights")
        require_varied(recording, self.utility)


DEFAULT = Fit()


def priced_task(recording: Recording, score_cost: float | None = 0.0) -> Task:
    """A task with what scores and drafts cost in evaluations.

    score_cost: of a decode with its rewards; None by recorded FLOPs, as are drafts then, which
    otherwise count their forward passes, as in budgets of evaluations."""
    by_flops = task_of(Budget(flops=1.0), ReplayEngine(recording))  # 0 where FLOPs are not known
    cost = by_flops.score_cost if score_cost is None else score_cost
    draft_cost = by_flops.draft_cost if score_cost is None else 0.0
    return Task(
        recording.grid,
        score_cost=cost,
        shared=True,
        check_cost=max(0.0, cost - (by_flops.score_cost - by_flops.checking)),
        draft_calls=recording.draft_calls,
        draft_cost=draft_cost or recording.price.nfe_per_draft,
    )


def calibrate(
    recording: Recording,
    checks: Sequence[int | str] | None = None,
    costs: Task | None = None,
    images: Sequence[float] = IMAGES,
    fit: Fit = DEFAULT,
) -> Forecast:
    """The forecast, with the prices that spend shared budgets of `images` whole images.

    checks: as `read_checks` reads them; None for those of `recorded_checks`. costs: as of
    `priced_task`. ValueError where the recording lacks a check, has too few trajectories or failed
    scores, or where its rewards do not vary.
    """
    fit.check(recording)
    task = costs or priced_task(recording)
    grid = recording.grid
    seen = recorded_checks(recording) if checks is None else read_checks(list(checks))
    columns = fit.utility(recording.columns)
    rewards = columns[..., : grid.steps + 1].copy()
    for check in seen:
        if check.look != ESTIMATE.name:
            rewards[..., check.step] = fit.utility(recording.seen(*check))
    forecast = fitted(rewards, grid.levels, seen)
    wide = enlarge(columns, recording, fit.seeds, np.random.default_rng(fit.seed))
    whole = grid.nfe + task.score_cost
    # the largest budgets first: they take longest, and none is left for the end
    tasks = [replace(task, allowance=count * whole) for count in sorted(images, reverse=True)]
    prices: list[tuple[float, float]] = []
    with working(partial(_price_that_spends, forecast, wide, fit.seed), fit.workers) as found:
        for each, price in zip(tasks, found(tasks), strict=True):
            prices.append((each.allowance, price))
            fit.on_progress(len(prices), len(tasks))
    return replace(forecast, prices=np.array(prices[::-1]))


def recorded_checks(recording: Recording) -> tuple[EstimatorAt, ...]:
    """The default checks: those of `default_checks` that were recorded, and first the recorded
    draft of fewest calls.

    The draft is in the place of the estimate at step 0."""
    calls = recording.draft_calls
    steps = default_checks(recording.grid.steps)
    drafts = (EstimatorAt(Draft(calls).name, 0),) if calls else ()
    return drafts + estimates(*(k for k in steps if recording.scored[k] and k >= len(drafts)))


def enlarge(
    columns: FloatArray, recording: Recording, seeds: int, rng: np.random.Generator
) -> Recording:
    """A recording of one reward with `seeds` trajectories a prompt: those of all prompts, moved to
    its mean and spread.

    Larger budgets would use up forty recorded seeds. Each trajectory is mixed with Gaussian noise
    of the trajectories' covariance (a smoothed bootstrap, Silverman and Young 1987). So a fit does
    not depend on a few of them. Means and covariances stay. columns: utilities of
    `Recording.columns`; nan stays nan.
    """
    last = recording.grid.steps
    mean = columns.mean(1, keepdims=True)
    spread = columns[..., last, None].std(1, keepdims=True)
    varied = metrics.varied(columns[..., last])
    known = np.flatnonzero([*recording.scored, *(True for _ in recording.looks)])
    pool = ((columns - mean)[varied] / spread[varied]).reshape(-1, columns.shape[-1])[:, known]
    drawn = rng.random((len(columns), len(pool))).argsort(1)[:, : max(seeds, recording.seeds)]
    noise = rng.multivariate_normal(
        np.zeros(len(known)), np.atleast_2d(np.cov(pool.T)), drawn.shape
    )
    made = np.full((*drawn.shape, columns.shape[-1]), np.nan)
    made[..., known] = np.sqrt(1 - _SMOOTHING**2) * pool[drawn] + _SMOOTHING * noise
    return replace(as_one(recording, mean + spread * made), first_seed=0)


def as_one(recording: Recording, columns: FloatArray) -> Recording:
    """The recording of a single reward, made of all recorded ones, whose call takes a call of each.

    columns: scores of that reward for each of `Recording.columns`.
    """
    price = recording.price
    calls = recording.price.calls(len(recording.reward_names))

    def all_of(rates: Rates) -> Rates:
        return replace(rates, reward_calls=calls * rates.reward_calls)

    price = replace(
        price,
        flops=all_of(price.flops),
        seconds=None if price.seconds is None else all_of(price.seconds),
        more_calls=0,
    )
    first = recording.grid.steps + 1
    scores = columns[..., None]
    looks = {seen: scores[:, :, first + i] for i, seen in enumerate(recording.looks)}
    return replace(
        recording, scores=scores[:, :, :first], looks=looks, reward_names=("utility",), price=price
    )


def _price_that_spends(
    forecast: Forecast, recording: Recording, seed: int, task: Task, repeats: int = 10
) -> float:
    """The price that spends the allowance of the task, by bisection: a higher price spends less."""
    low, high = (
        float(np.sqrt(forecast.prior_variance(forecast.mean[-1]))) * p for p in (1e-5, 3.0)
    )
    n = recording.seeds
    orders = Orders.drawn(recording, repeats, np.random.default_rng(seed))
    lookup = orders.play(recording, n)
    for _ in range(14):
        price = float(np.sqrt(low * high))
        out = lockstep(
            PriceOfCompute(forecast, n=n, price=price, floor=price), lookup, len(orders), task
        )
        spent = float(out.paid.spent(task).mean())
        low, high = (price, high) if spent > task.allowance else (low, price)
    return float(np.sqrt(low * high))
