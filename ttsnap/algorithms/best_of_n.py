"""Best-of-N: denoise N seeds to the end, keep the best. The baseline that every other search must
beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsnap.core.grid import Grid, Task
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
    """One seed is finished, at its place among those that begin together, in batches of the sizes
    that it was made in. For images that are made again."""

    place: Natural = 0
    """From 0."""
    batches: tuple[int, ...] = (1,)
    """Rows of each call, the last one that of the last evaluation; of one size alone, of all."""
    n: ClassVar[int] = 1
    needs = NOTHING
    lockstep: ClassVar[bool] = False

    def init(self, task: Task) -> Grid:
        return task.grid

    def step(
        self, state: Grid, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, Grid]:
        alike = len(self.batches) == 1
        begun = len(particles)
        end = state.steps
        if not begun:
            whole = alike and not self.place
            first = max(self.place + 1, self.batches[0])
            return fresh(first, end if whole else 0, score=whole), state
        if particles.finished[self.place]:
            return None, state
        if begun < max(self.batches):
            return fresh(max(self.batches) - begun, 0, score=False), state
        left = state.calls[end] - state.calls[particles.step[self.place]]
        size = self.batches[-min(left, len(self.batches))]
        others = np.setdiff1d(np.flatnonzero(~particles.finished), self.place)
        uids = np.append(self.place, others[: size - 1])
        stop = np.full(size, end) if alike else particles.step[uids] + 1
        return advance(particles, uids, stop, score=stop == end), state
