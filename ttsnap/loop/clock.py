"""The time of a request, and how much work goes into what is left of it.

Work (k+1,) is units of each kind of cost, and calls of the denoiser or the drafter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.cost import KINDS, NAMES, Cost, Rates
from ttsnap.core.plans import Plan
from ttsnap.core.protocols import Engine

Work: TypeAlias = FloatArray
NEWEST = 0.2
OUTLIER = 3.0
"""The weight of the last batch in what work is expected to take; how many times that is believed of
one batch."""
LATE = 0.03
"""Share of its time by which a search may be expected to end late: no forecast is surer."""


@dataclass
class RequestClock:
    """The time of a request, in seconds."""

    clock: Callable[[], float]
    begin: float
    """When it began, by `clock`."""
    deadline: float = np.inf
    """When it has to end, by `clock`."""
    before: float = 0.0
    """Seconds that it took to get ready."""
    limit: bool = False
    """Whether the deadline is a limit beside the budget, which may be left."""

    @property
    def seconds(self) -> float:
        return self.clock() - self.begin

    def start(self, seconds: float) -> None:
        """It begins now, and has so many seconds."""
        self.before, self.begin = self.seconds, self.clock()
        self.deadline = self.begin + seconds

    @property
    def allowed_lateness(self) -> float:
        return LATE * (self.deadline - self.begin)


class PlannedMove(NamedTuple):
    """A move of a dry run."""

    work: Work
    rows: int


def work_of(cost: Cost, longest: float, engine: Engine) -> Work:
    """longest: calls of the row that takes the most of them."""
    return np.array([*cost.amounts(), _batches(cost.nfe + cost.draft_calls, longest, engine)])


def _batches(
    calls: FloatArray | IntArray | int, longest: FloatArray | IntArray | float, engine: Engine
) -> FloatArray:
    """So many calls for rows, in batches of which the last may not be full."""
    each = np.maximum(longest, 1)
    return np.asarray(each * np.ceil(calls / each / max(1, engine.capacity // 2)), float)


class Pace:
    """Seconds that work takes: by the engine's price at first, then by what work took lately."""

    def __init__(
        self, engine: Engine, rates: Rates, watch: RequestClock, plan: Sequence[PlannedMove] = ()
    ) -> None:
        """plan: the moves of one prompt, where they are known."""
        self.rates = np.array([*rates.amounts(), rates.call])
        self.engine = engine
        self.watch = watch
        self.plan = plan
        self.ahead: Work = np.zeros(len(KINDS) + 1)
        """What is under way."""
        self._at: float | None = None
        self._batches, self._known = 0, np.zeros(len(self.ahead), bool)

    def work(self, plan: Plan) -> Work:
        calls = plan.costs["nfe"] + plan.costs.get("draft_calls", 0)
        return work_of(plan.cost, float(np.max(calls, initial=0)), self.engine)

    def until(self, plan: Plan) -> FloatArray:
        """(n,) seconds of the rows of a plan up to each one."""
        rows = sum(
            rate * plan.costs[name]
            for name, rate in zip(NAMES, self.rates.tolist(), strict=False)
            if name in plan.costs
        )
        calls = plan.costs["nfe"] + plan.costs.get("draft_calls", 0)
        batches = _batches(np.cumsum(calls), np.maximum.accumulate(calls), self.engine)
        until: FloatArray = np.cumsum(rows) + self.rates[-1] * batches
        return until

    def finishing(self, cost: Cost, images: int = 1) -> float:
        """Seconds of finishing so many images, which take this much in all."""
        return self.seconds(work_of(cost, cost.nfe / max(1, images), self.engine))

    def seconds(self, work: Work) -> float:
        return float(self.rates @ work)

    @property
    def left(self) -> float:
        """Seconds that are left when all that is under way is done, and a little more."""
        return (
            self.watch.deadline
            - self.watch.clock()
            + self.watch.allowed_lateness
            - self.seconds(self.ahead)
        )

    def rest(self, move: int) -> float:
        """Seconds of a prompt's search from this planned move on."""
        return sum(self.seconds(planned.work) for planned in self.plan[move:])

    def later(self, move: int) -> float:
        """Seconds that each row of this planned move brings with it in later ones."""
        return self.rest(move + 1) / self.plan[move].rows if move < len(self.plan) else 0.0

    def returned(self, cost: Cost, *, waits: bool) -> None:
        """What was under way is not any more. waits: whether anything is."""
        self.ahead = np.maximum(self.ahead - work_of(cost, 0.0, self.engine), 0.0) * waits

    def passed(self, ran: Cost, share: float, *, waits: bool) -> None:
        """A batch has run, of which this share was the request's. waits: whether anything is under
        way."""
        work = share * np.array([*ran.amounts(), float(ran.nfe + ran.draft_calls > 0)])
        self.ahead = np.maximum(self.ahead - work, 0.0) * waits
        taken = self.rates * work
        now = self.watch.clock()
        expected = float(taken.sum())
        if expected > 0:  # else its time counts with that of the next one
            took = (now - (self.watch.begin if self._at is None else self._at)) / expected
            self._batches = self._batches + 1
            self._known = self._known | (work > 0)
            self._at = now
            newest = max(NEWEST, 1 / (1 + self._batches))
            # What did not run yet is taken to be as much slower as what did.
            part = np.where(self._known, taken / expected, 1.0)
            self.rates *= 1 + newest * part * (np.clip(took, 1 / OUTLIER, OUTLIER) - 1)
