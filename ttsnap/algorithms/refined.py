"""A search to the end, then a local refinement of what it found: global search and local
optimisation add up."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.noise_ascent import NoiseAscent
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.core.protocols import Algorithm, AlgorithmState, Refining


class RefinedState(NamedTuple):
    """What the search remembers between moves."""

    task: Task
    inner: AlgorithmState
    """State of the present part."""
    refining: bool = False
    """Whether that is the second."""


@dataclass(frozen=True)
class Refined:
    """Each part is an algorithm, a name or {"name": ..., **options}.

    Where the number of seeds of the first part is fitted to the budget, the price of the second is
    set aside. A first part that plans by the budget itself leaves nothing.
    """

    first: Algorithm = field(default_factory=SeedPruning)
    """Searches until it has no more to propose."""
    second: Refining = field(default_factory=lambda: NoiseAscent(rounds=5))
    """Goes on from the best finished image that first left alive, by its method `adopt`
    (core.Refining): noise-ascent, or zero-order where a reward has no gradient. It needs its number
    of rounds."""
    n: int | None = None
    """Of first; None for as many as the budget affords beside second."""
    lockstep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        first = make_algorithm(self.first)
        second = make_algorithm(self.second)
        if not isinstance(second, Refining) or second.rounds is None:
            raise ValueError(
                "second refines for a number of rounds: noise-ascent or zero-order with rounds,"
                f" got {second}"
            )
        if self.n is not None and self.n != first.n:
            first = make_algorithm(first, n=self.n)
        for name, value in {"first": first, "second": second, "n": first.n}.items():
            object.__setattr__(self, name, value)

    @property
    def needs(self) -> Needs:
        return self.first.needs | self.second.needs

    def init(self, task: Task) -> RefinedState:
        self.second.init(task)  # complains now, not when the search is paid
        return RefinedState(task, self.first.init(task))

    def step(
        self, state: RefinedState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, RefinedState]:
        if not state.refining:
            move, inner = self.first.step(state.inner, particles, rng)
            if move is not None and len(move):
                return move, state._replace(inner=inner)
            rejected = np.empty(0, int) if move is None else move.reject
            done = np.setdiff1d(np.flatnonzero(particles.finished & particles.alive), rejected)
            if not len(done):
                return move, state
            best = done[[int(np.argmax(particles.value(done)))]]
            state = RefinedState(
                state.task, self.second.adopt(self.second.init(state.task), best, particles), True
            )
            move, inner = self.second.step(state.inner, particles, rng)
            if move is not None and len(rejected):
                move = dataclasses.replace(move, reject=np.union1d(move.reject, rejected))
            return move, state._replace(inner=inner)
        move, inner = self.second.step(state.inner, particles, rng)
        return move, state._replace(inner=inner)
