"""Denoise every seed to the end and score on the way: nothing is decided, everything is seen. For
recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsnap.core.grid import Task
from ttsnap.core.looks import ESTIMATE, Estimator, EstimatorAt, read_look
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Settings

State = tuple[tuple[int, Estimator], ...]
"""The scores to come, each at a step and by a look."""


@dataclass(frozen=True)
class KeepAll(Settings):
    """Every seed is finished and scored on the way, the finished image always; see
    Result.particles.scores."""

    n: Count | None = None
    """Seeds; None for as many as the budget affords."""
    steps: tuple[int, ...] | None = None
    """Which steps to score, rising; None for all."""
    looks: tuple[str, ...] = ()
    """What else to score, each as a look and its step: "draft:1@0" is a draft of one call from the
    initial noise. Where a step is scored in several ways, Result.particles has the scores of the x0
    estimate, if it is in `steps`."""
    lockstep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps must rise, got {self.steps}")

    @property
    def needs(self) -> Needs:
        return frozenset(
            need for text in self.looks for need in read_look(EstimatorAt.read(text).look).needs
        )

    def init(self, task: Task) -> State:
        """What is to come, the last being the end."""
        steps = self.scored(task.grid.steps)
        looks = sorted(map(EstimatorAt.read, self.looks), key=lambda seen: seen.step)
        if len(set(looks)) < len(looks) or any(seen.step >= task.grid.steps for seen in looks):
            raise ValueError(
                f"looks must differ and come before step {task.grid.steps}, got {self.looks}"
            )
        all_of_them = [(seen.step, read_look(seen.look)) for seen in looks] + [
            (step, ESTIMATE) for step in steps
        ]
        # looks before the estimate of their step
        return tuple(sorted(all_of_them, key=lambda stop: stop[0]))

    def scored(self, end: int) -> tuple[int, ...]:
        """The steps at which estimates are scored, and the end."""
        steps = (
            tuple(range(end)) if self.steps is None else tuple(s for s in self.steps if s != end)
        )
        if any(not 0 <= s < end for s in steps):
            raise ValueError(f"steps {steps} do not fit a grid of {end} steps (0..{end})")
        return (*steps, end)

    def step(
        self, state: State, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, State]:
        if not state:
            return None, state
        (stop, look), *later = state
        if not len(particles):
            return fresh(self.n or 1, stop, look=look), tuple(later)
        everyone = np.nonzero(particles.alive)[-1].reshape(particles.alive.shape)
        return advance(particles, everyone, stop, look=look), tuple(later)
