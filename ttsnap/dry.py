"""An engine without a model: random scores, no compute. For planning what an algorithm would cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttsnap.budget import Price
from ttsnap.types import Cost, Grid, IntArray, Move, Outcome


class DryEngine:
    """Carries every move out at once with standard normal scores."""

    capacity = 1

    def __init__(self, grid: Grid, reward_names: tuple[str, ...], *, stochastic: bool = False) -> None:
        self.grid, self.reward_names, self.stochastic, self.price = grid, reward_names, stochastic, Price()
        self._done: list[Outcome] = []
        self._rng = np.random.default_rng(0)

    def calibrate(self) -> Cost:
        return Cost()

    def start(self, prompts: Sequence[str], seed: int) -> None:
        pass

    def submit(self, job: int, uids: IntArray, seeds: IntArray, move: Move) -> None:
        scores = self._rng.standard_normal((len(move), len(self.reward_names)))
        for row, (uid, stop, scored) in enumerate(zip(uids, move.stop, move.score, strict=True)):
            cached = bool(scored) and stop < self.grid.steps
            self._done.append(Outcome(job, int(uid), int(stop), cached, scores[row] if scored else None))

    def pending(self) -> int:
        return len(self._done)

    def tick(self) -> list[Outcome]:
        done, self._done = self._done, []
        return done

    def cancel(self, job: int) -> list[Outcome]:
        return []

    def drop(self, job: int, uids: Sequence[int]) -> None:
        pass
