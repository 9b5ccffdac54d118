"""Best-of-N: denoise N seeds to the end, keep the best. The baseline that every other search must
beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import NOTHING
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Natural, Settings


@dataclass(frozen=True)
class BestOfN(Settings):
    """Every seed is finished; the best image is returned."""

    n: Count | None = None
    """Seeds; None for as many as the budget affords."""
    needs = NOTHING
    lockstep: ClassVar[bool] = True

    def init(self, task: Task) -> int:
        return task.grid.steps

    def step(
        self, state: int, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, int]:
        if len(particles):
            return None, state
        return fresh(self.n or 1, state), state


@dataclass(frozen=True)
class OneOfGroup(Settings):
    """One seed is finished, at its place among those that begin together. For images that are made
    again."""

    place: Natural = 0
    """From 0."""
    n: ClassVar[int] = 1
    needs = NOTHING
    lockstep: ClassVar[bool] = False

    def init(self, task: Task) -> int:
        return task.grid.steps

    def step(
        self, state: int, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, int]:
        if len(particles) > self.place:
            rest = None if particles.finished.any() else advance(particles, [self.place], state)
            return rest, state
        return fresh(self.place + 1, 0, score=False) if self.place else fresh(1, state), state
