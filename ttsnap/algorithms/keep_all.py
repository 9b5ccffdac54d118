"""Denoise every seed to the end and score on the way: nothing is decided, everything is seen. For recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import NOTHING, Needs
from ttsnap.core.particles import Particles


@dataclass(frozen=True)
class KeepAll:
    """Every seed is finished and scored on the way, the finished image always; see Result.particles.scores.

    n: seeds; None for as many as the budget affords.
    steps: which steps to score, rising; None for all.
    """

    n: int | None = None
    steps: tuple[int, ...] | None = None
    needs: ClassVar[Needs] = NOTHING
    lockstep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.steps is not None:
            object.__setattr__(self, "steps", tuple(self.steps))
            if list(self.steps) != sorted(set(self.steps)):
                raise ValueError(f"steps must rise, got {self.steps}")

    def init(self, task: Task) -> tuple[int, ...]:
        """The steps to come, the last being the end."""
        end = task.grid.steps
        steps = tuple(range(end)) if self.steps is None else tuple(s for s in self.steps if s != end)
        if any(not 0 <= s < end for s in steps):
            raise ValueError(f"steps {steps} do not fit a grid of {end} steps (0..{end})")
        return (*steps, end)

    def step(
        self, state: tuple[int, ...], particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, tuple[int, ...]]:
        if not state:
            return None, state
        stop, *later = state
        if not len(particles):
            return fresh(self.n or 1, stop), tuple(later)
        everyone = np.nonzero(particles.alive)[-1].reshape(particles.alive.shape)
        return advance(particles, everyone, stop), tuple(later)
