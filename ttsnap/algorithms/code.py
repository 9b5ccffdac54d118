"""CoDe, blockwise best-of-n on the path (arXiv 2502.00968, Algorithm 1), and SVDD, its block of one
step (2408.08252).

Every `block` steps each stream's particle makes n children. One of them goes on, by the score of
its x0 estimate at the block's end. No weights are carried along: a choice is made within a stream
and never taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import Need
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, NotNegative, Settings


class CoDeState(NamedTuple):
    """What the search remembers between moves."""

    streams: int
    """Paths."""
    stops: tuple[int, ...]
    """Ends of the blocks to come."""
    parents: tuple[int, ...] = ()
    """Particles that go on, one of each stream."""
    branched: bool = False
    """Whether the last move was to bring children of the parents."""


@dataclass(frozen=True)
class CoDe(Settings):
    """A stream takes one evaluation for noise, and n times `block` for every block: children share
    their parent's evaluation and need one of their own to be scored. The children of the last block
    end in images. Where that is a single step, a stream makes only one, as samplers draw no noise
    there."""

    n: Count | None = None
    """Children of each particle in a block; None for as many as the budget affords [the authors of
    SVDD take 20]."""
    streams: Count = 2
    """Particles, at least as many as images are asked for [as compared in arXiv 2503.19385]."""
    block: Count = 5
    """Grid steps between choices [configs of CoDe's authors; arXiv 2503.19385 takes 2 of 10
    steps]."""
    temperature: NotNegative = 0.0
    """0 for the best child, else one is drawn by weights exp(score / temperature), in units of the
    reward [SVDD's code takes the best]."""
    needs = frozenset({Need.BRANCH})
    lockstep: ClassVar[bool] = False

    def init(self, task: Task) -> CoDeState:
        steps = task.grid.steps
        return CoDeState(
            max(self.streams, task.keep), (*range(self.block, steps, self.block), steps)
        )

    def adopt(self, state: CoDeState, uids: IntArray, particles: Particles) -> CoDeState:
        """Start from these living particles, best first, in place of noises of its own: one stream
        from each.

        Blocks end where they always do, the next one after the particle that is furthest.
        """
        parents = uids[: state.streams]
        ahead = tuple(stop for stop in state.stops if stop > particles.step[parents].max())
        return state._replace(parents=tuple(parents.tolist()), stops=ahead)

    def step(
        self, state: CoDeState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, CoDeState]:
        if not len(particles):
            return fresh(state.streams, 0, score=False), state
        if not state.stops:
            return None, state
        parents = state.parents or tuple(range(len(particles)))
        if state.branched:
            streams = [particles.moved[i :: len(parents)] for i in range(len(parents))]
            parents = tuple(
                self._choose(uids[uids >= 0], particles, rng)
                for uids in streams
                if (uids >= 0).any()
            )
        if not parents:
            return None, state
        stop, *later = state.stops
        alone = particles.step[list(parents)].min() + 1 == stop == particles.scores.shape[1] - 1
        n = 1 if alone else self.n or 1
        # By turns, so that a budget that runs out costs no stream all its children.
        drop = particles.others(parents)
        move = advance(particles, np.tile(parents, n), stop, drop=drop)
        return move, CoDeState(state.streams, tuple(later), parents, True)

    def _choose(self, children: IntArray, particles: Particles, rng: np.random.Generator) -> int:
        """Which child of a stream goes on."""
        scores = particles.value(children)
        best = int(scores.argmax())
        if self.temperature == 0 or scores[best] == -np.inf:
            return int(children[best])
        weights = np.exp((scores - scores[best]) / self.temperature)
        return int(rng.choice(children, p=weights / weights.sum()))
