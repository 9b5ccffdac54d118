"""An engine whose scores follow a rule, for algorithms that are held against their papers'
pseudocode; and an algorithm that plays a list of moves, for engines and the loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.looks import Estimator
from ttsnap.core.moves import Move
from ttsnap.core.needs import Need, Needs
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.loop.dry import DryEngine

Score = Callable[[int, int], float]
"""(uid, step) -> score."""


class Scripted(DryEngine):
    """Scores particles by their uids; `plans` keeps what was submitted."""

    def __init__(
        self, score: Score, steps: int = 8, *, grid: Grid | None = None, stochastic: bool = True
    ) -> None:
        offers = frozenset(Need) - (set() if stochastic else {Need.BRANCH})
        super().__init__(grid or Grid(tuple(np.linspace(1, 0, steps + 1))), ("r",), offers=offers)
        self.score, self.plans = score, list[Plan]()

    def submit(self, job: int, plan: Plan) -> None:
        self.plans.append(plan)
        super().submit(job, dataclasses.replace(plan, seed=plan.uid))

    def scores(self, job: int, seeds: IntArray, steps: IntArray, look: Estimator) -> FloatArray:
        found = [
            self.score(uid, step) for uid, step in zip(seeds.tolist(), steps.tolist(), strict=True)
        ]
        return np.array(found, float).reshape(-1, 1)


def noisy(seed: int, fail: float = 0.0, rise: float = 0.1) -> Score:
    """Random scores that rise by `rise` a step; a share `fail` of the calls gives nan."""

    @functools.cache
    def score(uid: int, step: int) -> float:
        rng = np.random.default_rng([seed, uid, step])
        value = rng.normal() + rise * step
        return float("nan") if rng.random() < fail else float(value)

    return score


def ranked(score: Score) -> Score:
    """The same scores as a search compares them: nan counts as -inf."""

    def value(uid: int, step: int) -> float:
        found = score(uid, step)
        return found if found == found else -np.inf

    return value


@dataclasses.dataclass(frozen=True)
class Played:
    """Plays a list of moves, given as functions of the particles."""

    moves: tuple[Callable[[Particles], Move], ...]
    needs: Needs = frozenset({Need.BRANCH, Need.RENOISE, Need.MIX, Need.NEAR})
    n: int = 1
    lockstep: bool = False

    def init(self, task: Any) -> int:
        return 0

    def step(self, state: int, particles: Any, rng: Any) -> Any:
        return (
            (self.moves[state](particles), state + 1) if state < len(self.moves) else (None, state)
        )
