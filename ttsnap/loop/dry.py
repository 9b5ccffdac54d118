"""An engine without a model: random scores, no compute. For planning what an algorithm would
cost."""

from __future__ import annotations

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.looks import Estimator
from ttsnap.core.needs import Need
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.price import Price
from ttsnap.core.protocols import Engine


class DryEngine(Engine):
    """Carries every plan out at once with standard normal scores."""

    capacity = 1
    nfe = 0
    offers: frozenset[Need] = frozenset()
    """What algorithms may need of it; all by default."""
    price = Price()

    def __init__(
        self,
        grid: Grid,
        reward_names: tuple[str, ...],
        *,
        offers: frozenset[Need] = frozenset(Need),
        price: Price | None = None,
        draft_calls: int = 0,
    ) -> None:
        self.grid = grid
        self.reward_names = reward_names
        self.offers = offers
        self.price = price or Price()
        self.draft_calls = draft_calls
        self._done: list[Outcome] = []
        self._rng = np.random.default_rng(0)

    def start(self) -> None:
        self._done = []

    def submit(self, job: int, plan: Plan) -> None:
        rows = plan.rows
        cached = plan.cached(self.grid)
        for scored, (at,) in ((True, rows.score.nonzero()), (False, (~rows.score).nonzero())):
            if len(at):
                stop = rows.stop[at]
                scores = self.scores(job, plan.seed[at], stop, plan.look) if scored else None
                images = [None] * len(at) if scored else None
                self._done.append(Outcome(job, plan.uid[at], stop, cached[at], scores, images))

    def scores(self, job: int, seeds: IntArray, steps: IntArray, look: Estimator) -> FloatArray:
        """(n, R) scores of these seeds at these steps, unfinished ones by this look."""
        return self._rng.standard_normal((len(seeds), len(self.reward_names)))

    def pending(self) -> int:
        return sum(len(outcome.uids) for outcome in self._done)

    def tick(self) -> list[Outcome]:
        done = self._done
        self._done = []
        return done

    def cancel(self, job: int) -> Outcome:
        nothing = np.empty(0, int)
        return Outcome(job, nothing, nothing, nothing.astype(bool))
