"""Denoise every seed to the end and score every step: nothing is decided, everything is seen. For recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsnap.types import Grid, Move, Particles, advance, fresh


@dataclass(frozen=True)
class KeepAll:
    """n: number of seeds; None for as many as the budget affords. The scores are in Result.particles.scores."""

    n: int | None = None
    branches: ClassVar[bool] = False
    lockstep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")

    def init(self, grid: Grid, keep: int = 1) -> int:
        return grid.steps

    def step(self, state: int, particles: Particles, rng: np.random.Generator) -> tuple[Move | None, int]:
        if not len(particles):
            return fresh(self.n or 1, 0), state
        at = int(particles.step.flat[0])
        if at == state:
            return None, state
        return advance(particles, np.nonzero(particles.alive)[-1].reshape(particles.alive.shape), at + 1), state
