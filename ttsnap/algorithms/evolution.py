"""Evolution of initial noises (after EvoSearch, arXiv 2505.17618): select, mutate, and denoise only
the best of all.

EvoSearch scores every generation by finished images, which is dear. Here it may be scored by drafts
of the noise, at a fraction of an image each, or by x0 estimates.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsnap.algorithms.seed_pruning import PruningState, SeedPruning
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, fresh, perturb
from ttsnap.core.needs import Need
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Decay, Fraction, Settings


@dataclass(frozen=True)
class Evolution(Settings):
    """Seed pruning whose seeds are bred: the first check is taken in generations, and keeps the
    best of all of them."""

    n: int | None = None
    """Noises of a generation; None for as many as the budget affords."""
    generations: Count = 4
    """How many there are; the first is of fresh seeds [ours]."""
    parents: Fraction = 0.1
    """Share of all noises so far, the best, that the next generation descends from, in (0, 1]
    [ours]."""
    mix: Decay = 0.98
    """Share of a parent's noise in a child's, in [0, 1) [arXiv 2505.17618]."""
    keep: tuple[float, ...] = (0.3,)
    """Share kept at each check, in (0, 1]."""
    levels: tuple[float, ...] = (0.6,)
    """Where the checks are, as noise levels in (0, 1], falling. Generations are scored by drafts
    where there is a drafter, else at the first of these; without any levels, by finished images, as
    in EvoSearch."""
    draft_share: float = 0.35
    """Where there is a drafter, the share of the cost that goes to drafts; 0 for none, below 1
    [ours]."""
    draft_calls: int | None = None
    """Calls of the drafter in a draft; None for as many as it was loaded with."""
    needs = frozenset({Need.MIX})
    lockstep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pruning()

    def _pruning(self) -> SeedPruning:
        """What becomes of all noises; it refuses checks and shares that cannot be meant."""
        return SeedPruning(
            self.n,
            self.keep,
            self.levels,
            draft_share=self.draft_share,
            draft_calls=self.draft_calls,
        )

    def init(self, task: Task) -> PruningState:
        """The first check once for each generation, then the others."""
        least, (first, *others) = self._pruning().init(task)
        return PruningState(least, (*[first] * self.generations, *others))

    def step(
        self, state: PruningState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, PruningState]:
        check, *ahead = state.checks
        if not len(particles):
            return fresh(self.n or 1, check.step, look=check.look), state
        if check not in ahead:
            return self._pruning().step(state, particles, rng)
        ranked = particles.ranked()
        parents = ranked[: max(1, math.floor(self.parents * len(ranked) + 0.5))]
        move = perturb(np.resize(parents, self.n or 1), self.mix, check.step)
        return dataclasses.replace(move, look=check.look), PruningState(state.least, tuple(ahead))
