"""An engine whose scores follow a rule, for algorithms that are held against their papers'
pseudocode; and an algorithm that plays a list of moves, for engines and the loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from ttsnap.core.grid import Grid
from ttsnap.core.moves import Move
from ttsnap.core.needs import Need, Needs
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.loop.dry import DryEngine

Score = Callable[[int, int], float]
"""(uid, step) -> score."""


class Scripted(DryEngine):
    """Scores particles by their uids; `plans` keeps what was submitted."""

    def __init__(self, score, steps=8, *, grid=None, stochastic=True):
        offers = frozenset(Need) - (set() if stochastic else {Need.BRANCH})
        super().__init__(grid or Grid(tuple(np.linspace(1, 0, steps + 1))), ("r",), offers=offers)
        self.score, self.plans = score, list[Plan]()

    def submit(self, job, plan):
        self.plans.append(plan)
        super().submit(job, dataclasses.replace(plan, seed=plan.uid))

    def scores(self, job, seeds, steps, look):
        found = [
            self.score(uid, step) for uid, step in zip(seeds.tolist(), steps.tolist(), strict=True)
        ]
        return np.array(found, float).reshape(-1, 1)


def noisy(seed, fail=0.0, rise=0.1):
    """Random scores that rise by `rise` a step; a share `fail` of the calls gives nan."""

    @functools.cache
    def score(uid, step):
        rng = np.random.default_rng([seed, uid, step])
        value = rng.normal() + rise * step
        return float("nan") if rng.random() < fail else float(value)

    return score


def ranked(score):
    """The same scores as a search compares them: nan counts as -inf."""

    def value(uid, step):
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

    def init(self, task):
        return 0

    def step(self, state, particles, rng):
        return (
            (self.moves[state](particles), state + 1) if state < len(self.moves) else (None, state)
        )
