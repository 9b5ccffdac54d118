"""Best-of-N: denoise N seeds to the end, keep the best. The baseline that every other search must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, fresh
from ttsnap.core.needs import NOTHING, Needs
from ttsnap.core.particles import Particles


@dataclass(frozen=True)
class BestOfN:
    """Every seed is finished; the best image is returned.

    n: seeds; None for as many as the budget affords.
    """

    n: int | None = None
    needs: ClassVar[Needs] = NOTHING
    lockstep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")

    def init(self, task: Task) -> int:
        return task.grid.steps

    def step(self, state: int, particles: Particles, rng: np.random.Generator) -> tuple[Move | None, int]:
        if len(particles):
            return None, state
        return fresh(self.n or 1, state), state
