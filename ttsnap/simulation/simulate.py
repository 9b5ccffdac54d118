"""What policies would have found over a recording at each budget, played by the objects that run
live."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ttsnap.algorithms import name_of
from ttsnap.core import metrics
from ttsnap.core import utility as utilities
from ttsnap.core.arrays import FloatArray
from ttsnap.core.looks import ESTIMATE
from ttsnap.core.needs import Need, declared
from ttsnap.core.protocols import Algorithm
from ttsnap.core.utility import Utility
from ttsnap.loop.budget import Budget
from ttsnap.loop.search import Costs, dry_costs
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import FAILED, Orders, draw_orders
from ttsnap.simulation.processes import working
from ttsnap.simulation.sizing import sized_for, task_for

LEDGERS = ("honest", "published")


@dataclass(frozen=True)
class Curve:
    """What a method finds at each of B budgets for P prompts, and what it spends; means over
    repeats."""

    budgets: tuple[Budget, ...]
    rewards: FloatArray
    """(P, B) utility of the winners."""
    scores: FloatArray
    """(P, B, R) scores of the winners."""
    spent: FloatArray
    """(B,) mean evaluations of a search, with decodes and rewards counted in."""
    most: FloatArray
    """(B,) the same of the search that spent most."""

    @property
    def mean(self) -> FloatArray:
        """(B,) over prompts."""
        return np.asarray(self.rewards.mean(0))

    @property
    def error(self) -> FloatArray:
        """(B,) standard error over prompts; nan with a single one."""
        n = len(self.rewards)
        if n > 1:
            return np.asarray(self.rewards.std(0, ddof=1) / math.sqrt(n))
        return np.full(len(self.budgets), np.nan)

    @classmethod
    def joined(cls, points: Sequence[Curve]) -> Curve:
        """The curve of a method of which these are parts, budget after budget."""

        def whole(name: str) -> FloatArray:
            columns: list[FloatArray] = [getattr(point, name) for point in points]
            return np.concatenate(columns, min(1, columns[0].ndim - 1))

        budgets = tuple(budget for point in points for budget in point.budgets)
        return cls(budgets, whole("rewards"), whole("scores"), whole("spent"), whole("most"))


class Method(NamedTuple):
    """What is simulated."""

    algorithm: Algorithm
    shared: bool = False
    """Whether the prompts of one repeat share their budgets."""
    ledger: str = "honest"
    """How searches are billed: "honest", or "published", as notebooks of arXiv 2511.22242 bill
    (`published_seeds`)."""


class StudyPlace(NamedTuple):
    """A point of a curve of a Study."""

    method: int
    """Its place in `Study.methods`."""
    budget: Budget
    orders: Orders


@dataclass(frozen=True)
class Study:
    """Methods over a recording: each searches every prompt `repeats` times at each of the budgets.

    Each search sees the recorded seeds in an order of its own, drawn from `seed`: the same orders
    for all methods. Called with a StudyPlace, a study makes that point. Raises ValueError where a
    method cannot run on this recording.
    """

    recording: Recording
    methods: tuple[Method, ...]
    budgets: tuple[Budget, ...]
    repeats: int = 10
    utility: Utility = utilities.mean
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")
        for method in self.methods:
            _require_simulable(self.recording, method)

    def curves(
        self, workers: int = 1, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Curve]:
        """The curve of each method.

        workers: processes that make points in parallel (`processes.working`); the curves are the
        same to the last digit. on_progress: called with (done, of) points."""
        orders = draw_orders(self.recording, self.budgets, self.repeats, self.seed)
        places = [
            # the largest budgets first: they take longest, and none is left for the end
            StudyPlace(method, *at)
            for at in reversed(list(zip(self.budgets, orders, strict=True)))
            for method in range(len(self.methods))
        ]
        found: list[list[Curve]] = [[] for _ in self.methods]
        # without `_costs`, which cannot be sent
        with working(dataclasses.replace(self), workers) as made:
            for done, (place, point) in enumerate(zip(places, made(places), strict=True), 1):
                found[place.method].append(point)
                if on_progress is not None:
                    on_progress(done, len(places))
        return [Curve.joined(points[::-1]) for points in found]

    def __call__(self, place: StudyPlace) -> Curve:
        r = self.recording
        (algorithm, shared, ledger) = self.methods[place.method]
        orders = place.orders
        costs = self._costs[place.method]
        task, sized = sized_for(
            r, algorithm, place.budget, shared=shared, ledger=ledger, costs=costs
        )
        lookup = orders.play(r, sized.n or 1)
        searches = len(orders)
        pot = len(r.prompts) if shared else None
        out = lockstep(
            sized,
            lookup,
            searches,
            task,
            rewards=len(r.reward_names),
            utility=self.utility,
            pot=pot,
        )
        total = out.paid.spent(task)
        everyone = np.arange(searches)
        end = np.full((searches, 1), task.grid.steps)
        won = lookup(everyone, out.winner[:, None], end, ESTIMATE)[:, 0]
        rewards, scores = (
            of.reshape(self.repeats, -1, 1, *of.shape[1:]).mean(0) for of in (out.reward, won)
        )
        return Curve(
            (place.budget,), rewards, scores, total.mean(keepdims=True), total.max(keepdims=True)
        )

    @cached_property
    def _costs(self) -> list[Costs]:
        """What n seeds of each method cost; the budgets share these dry runs."""
        return [
            dry_costs(method.algorithm, ReplayEngine(self.recording)) for method in self.methods
        ]


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
    """The curve of a single method, as a Study makes it.

    orders: `draw_orders` of these budgets, repeats and seed, drawn once for several algorithms.
    Raises ValueError where the algorithm cannot run on this recording.
    """
    caps = tuple(Budget.parse(b) for b in budgets)
    study = Study(recording, (Method(algorithm, shared, ledger),), caps, repeats, utility, seed)
    if orders is None:
        return study.curves()[0]
    return Curve.joined([study(StudyPlace(0, *at)) for at in zip(caps, orders, strict=True)])


def _require_simulable(recording: Recording, method: Method) -> None:
    """ValueError where a method cannot run on this recording."""
    algorithm, _, ledger = method
    if ledger not in LEDGERS:
        raise ValueError(f"ledger must be one of {LEDGERS}, got {ledger!r}")
    if lacks := declared(algorithm.needs) - recording.offers:
        if lacks == {Need.DRAFT}:
            raise ValueError(
                f"{name_of(algorithm)} looks at candidates by drafts, which this recording has no"
                " scores of; record with --draft"
            )
        raise ValueError(
            f"{name_of(algorithm)} makes candidates of candidates: a recording holds only what was"
            " denoised once"
        )


def best_of_n_curve(
    recording: Recording,
    budgets: Sequence[Budget | str],
    *,
    utility: Utility = utilities.mean,
) -> Curve:
    """The exact curve of best-of-N: the expected maximum over all subsets of the recorded seeds.

    Both ledgers bill it in full. Raises ValueError for a utility that compares images, and for
    failed scores.
    """
    final = utility(recording.final)
    if np.isnan(final).any():
        raise ValueError(FAILED)
    if utility is utilities.rank_sum:
        raise ValueError(
            "exact best-of-N needs a utility that scores each image by itself; rank_sum has none"
        )
    engine = ReplayEngine(recording)
    columns = []
    scores = []
    spent = []
    parsed = tuple(map(Budget.parse, budgets))
    for budget in parsed:
        task = task_for(budget.on(engine.grid, engine.price.start), engine)
        one = task.grid.nfe + task.score_cost
        n = min(recording.seeds, int(task.allowance / one + 1e-9))
        columns.append(metrics.best_of_n(final, n))
        each = np.moveaxis(recording.final, -1, 0)
        scores.append(metrics.best_of_n(np.broadcast_to(final, each.shape), n, of=each).T)
        spent.append(n * one)
    return Curve(
        parsed, np.stack(columns, 1), np.stack(scores, 1), np.array(spent), np.array(spent)
    )


def require_varied(recording: Recording, utility: Utility = utilities.mean) -> None:
    """ValueError for failed scores, and where no prompt's finished images differ in `utility`.

    Then every search finds the same, and there is nothing to compare or to fit."""
    if recording.failed:
        raise ValueError(FAILED)
    if not metrics.varied(utility(recording.final)).any():
        raise ValueError(
            "the rewards of the finished images do not vary within any prompt"
            f" ({len(recording.prompts)} prompts x {recording.seeds} seeds), so that every search"
            " finds the same; record more seeds, harder prompts, or another reward"
        )


@dataclass(frozen=True)
class Comparison:
    """A method against best-of-N."""

    omega: float
    """In percent; nan where best-of-N gains nothing from the smallest budget to the largest."""
    error: float
    """Standard error of omega by a bootstrap over prompts; nan with one prompt."""
    equivalent_n: float
    """The N at which best-of-N equals the method at the largest budget."""
    matching_budget: float
    """The budget at which the method equals best-of-N at the largest."""


def compare(
    method: Curve, baseline: Curve, recording: Recording, utility: Utility = utilities.mean
) -> Comparison:
    """Both over the same rising budgets, at least three, in one unit, which is that of
    `matching_budget`."""
    amounts = rising(method.budgets)
    omega, error = _omega(amounts, method.rewards, baseline.rewards)
    return Comparison(
        omega,
        error,
        metrics.equivalent_n(float(method.mean[-1]), utility(recording.final)),
        metrics.matching_budget(amounts, method.mean, float(baseline.mean[-1])),
    )


def lead(method: Curve, other: Curve, baseline: Curve) -> tuple[float, float]:
    """How much the omega of a method is above another's, and the standard error of that difference.

    Both omegas are of the same resampled prompts, as prompts differ more than methods do. Curves as
    in `compare`."""
    return _omega(
        rising(method.budgets), method.rewards - other.rewards + baseline.rewards, baseline.rewards
    )


def _omega(amounts: FloatArray, method: FloatArray, baseline: FloatArray) -> tuple[float, float]:
    """omega of rewards (P, B) over budgets (B,), and its standard error by resampling the
    prompts."""
    omega = metrics.omega(amounts, method.mean(0), baseline.mean(0))
    n = len(method)
    draws = np.random.default_rng(0).integers(n, size=(200, n))
    resampled = np.array(
        [metrics.omega(amounts, method[d].mean(0), baseline[d].mean(0)) for d in draws]
    )
    resampled = resampled[np.isfinite(resampled)]  # without draws of prompts that are all easy
    return omega, float(np.std(resampled)) if n > 1 and len(resampled) else float("nan")


def rising(budgets: Sequence[Budget]) -> FloatArray:
    """(B,) amounts of the budgets. ValueError unless there are three or more, rising, in one
    unit."""
    unit = unit_of(budgets)
    amounts = np.array([float(dataclasses.asdict(b)[unit]) for b in budgets])
    if len(amounts) < 3 or (np.diff(amounts) <= 0).any():
        raise ValueError(
            f"a comparison takes 3 budgets or more, rising, got {', '.join(map(str, budgets))}"
        )
    return amounts


def unit_of(budgets: Sequence[Budget]) -> str:
    """The one field in which all of these budgets are given. ValueError where they are not."""
    units = {
        name for b in budgets for name, cap in dataclasses.asdict(b).items() if cap is not None
    }
    if len(units) != 1:
        raise ValueError(
            f"budgets of a curve are in one unit, got {', '.join(str(b) for b in budgets)}"
        )
    return units.pop()
