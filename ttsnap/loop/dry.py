"""An engine without a model: random scores, no compute. For planning what an algorithm would cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.moves import Move
from ttsnap.core.price import Price
from ttsnap.core.protocols import Engine, Outcome
from ttsnap.core.rows import mixes


class DryEngine(Engine):
    """Carries every move out at once with standard normal scores."""

    capacity = 1
    nfe = 0
    renoises = nears = True
    price = Price()

    def __init__(
        self, grid: Grid, reward_names: tuple[str, ...], *, stochastic: bool = False, price: Price | None = None
    ) -> None:
        self.grid, self.reward_names, self.stochastic, self.price = grid, reward_names, stochastic, price or Price()
        self._done: list[Outcome] = []
        self._paid: defaultdict[int, dict[int, int]] = defaultdict(dict)  # by job and uid
        self._rng = np.random.default_rng(0)

    def calibrate(self) -> Cost:
        return Cost()

    def differentiate(self, depth: int, weights: object = None) -> None:
        """Nothing to do: the price that it was given says what gradients take."""

    def start(self, prompts: Sequence[str], seed: int) -> None:
        self._done, self._paid = [], defaultdict(dict)

    def submit(self, job: int, uids: IntArray, seeds: IntArray, move: Move) -> None:
        # An evaluation that is paid stays so where a particle, or a child of it, waits.
        waits, known = move.start == move.stop, self._paid[job]
        if waits.any():
            at = np.array([known.get(parent, -1) for parent in move.parent.tolist()], int)
            waits &= (at == move.start) & ~mixes(move)
        paid = (waits | move.score) & (move.stop < self.grid.steps)
        known.update(zip(uids.tolist(), np.where(paid, move.stop, -1).tolist(), strict=True))
        for scored, (rows,) in ((True, move.score.nonzero()), (False, (~move.score).nonzero())):
            if len(rows):
                stop = move.stop[rows]
                scores = self.scores(job, seeds[rows], stop) if scored else None
                images = [None] * len(rows) if scored else None
                self._done.append(Outcome(job, uids[rows], stop, paid[rows], scores, images))

    def scores(self, job: int, seeds: IntArray, steps: IntArray) -> np.ndarray:
        """(n, R) scores of these seeds at these steps."""
        return self._rng.standard_normal((len(seeds), len(self.reward_names)))

    def pending(self) -> int:
        return sum(len(outcome.uids) for outcome in self._done)

    def tick(self) -> list[Outcome]:
        done, self._done = self._done, []
        return done

    def cancel(self, job: int) -> Outcome:
        nothing = np.empty(0, int)
        return Outcome(job, nothing, nothing, nothing.astype(bool))

    def drop(self, job: int, uids: Sequence[int]) -> None:
        pass
