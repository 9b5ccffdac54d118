"""One algorithm for initial noises, then another for the path from the best of them (as in arXiv 2506.01320)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.options import name_of
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.core.protocols import Algorithm


class State(NamedTuple):
    """inner: the present algorithm's."""

    task: Task
    inner: Any
    adopted: bool = False


@dataclass(frozen=True)
class Nested:
    """Each part is an algorithm, a name or {"name": ..., **options}.

    first: scores noises at step 0, until it has no more to propose there; a move of it beyond step 0 is not made.
    second: goes on from what first left alive at step 0, best first, by its method `adopt(state, uids, particles)`:
        code, svdd, rbf, verifier-threshold, epsilon-greedy or smc.
    n: of second; None for as many as the budget affords.
    """

    first: Algorithm = field(default_factory=TopNoises)
    second: Algorithm = field(default_factory=CoDe)
    n: int | None = None
    lockstep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        first, second = make_algorithm(self.first), make_algorithm(self.second)
        if not hasattr(second, "adopt"):
            raise ValueError(f"{name_of(second)} cannot go on from given noises; second may be code, rbf, smc, ...")
        if first.n is None:
            raise ValueError(f"first needs its number of seeds: set n of {name_of(first)}")
        if self.n is not None and self.n != second.n:
            second = make_algorithm(second, n=self.n)
        for name, value in {"first": first, "second": second, "n": second.n}.items():
            object.__setattr__(self, name, value)

    @property
    def needs(self) -> Needs:
        return self.first.needs | self.second.needs

    def init(self, task: Task) -> State:
        self.second.init(task)  # complains now, not when the noises are paid
        return State(task, self.first.init(task))

    def step(self, state: State, particles: Particles, rng: np.random.Generator) -> tuple[Move | None, State]:
        if state.adopted:
            move, inner = self.second.step(state.inner, particles, rng)
            return move, state._replace(inner=inner)
        move, inner = self.first.step(state.inner, particles, rng)
        if move is not None and len(move) and not move.rows.stop.any():
            return move, state._replace(inner=inner)
        if not len(particles):
            raise ValueError(f"{name_of(self.first)} does not stop at step 0, where first is to score noises")
        ready = particles.alive & (particles.step == 0)
        if move is not None:
            ready[move.drop] = False
        if not ready.any():
            return None, state
        # What first gives up is dropped with second's first move; until then it must not be seen.
        left = dataclasses.replace(particles, alive=ready)
        second: Any = self.second
        move, inner = second.step(second.adopt(second.init(state.task), left.ranked(), left), left, rng)
        if move is not None:
            move = dataclasses.replace(move, drop=np.union1d(move.drop, np.flatnonzero(particles.alive & ~ready)))
        return move, State(state.task, inner, True)
