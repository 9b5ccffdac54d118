"""Top-K of initial noises: score many seeds where they start, keep the best few.

Before a particle method, this alone is strong (the Top-K baseline of Psi-Sampler, arXiv
2506.01320): see nested.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import NOTHING
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Settings


class TopNoisesState(NamedTuple):
    steps: int
    keep: int
    done: bool = False


@dataclass(frozen=True)
class TopNoises(Settings):
    """Takes one evaluation for each seed, and the rest of the steps for each that is kept."""

    n: Count | None = 32
    """Seeds, all scored at step 0; None for as many as the budget affords [ours]."""
    keep: Count = 2
    """How many go on, at least as many as images are kept, or all where there are fewer [ours]."""
    needs = NOTHING
    lockstep: ClassVar[bool] = True

    def init(self, task: Task) -> TopNoisesState:
        return TopNoisesState(task.grid.steps, max(self.keep, task.keep))

    def step(
        self, state: TopNoisesState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, TopNoisesState]:
        if not len(particles):
            return fresh(self.n or 1, 0), state
        if state.done:
            return None, state
        ranked = particles.ranked()
        kept = ranked[..., : state.keep]
        rest = ranked[..., state.keep :]
        return advance(particles, kept, state.steps, drop=rest), state._replace(done=True)
