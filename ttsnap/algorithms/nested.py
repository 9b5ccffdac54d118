"""One algorithm up to some step, then another from its survivors: noises first, then the path (as
in arXiv 2506.01320), or seeds pruned early, then particles that branch from the rest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.algorithms import make_algorithm, name_of
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.core.protocols import Adopting, Algorithm, AlgorithmState


class NestedState(NamedTuple):
    """What the search remembers between moves."""

    task: Task
    algorithm: Algorithm
    """The present part, sized."""
    inner: AlgorithmState
    """State of the present part."""
    adopted: bool = False
    """Whether that is the second."""


@dataclass(frozen=True)
class Nested:
    """Each part is an algorithm, a name or {"name": ..., **options}."""

    first: Algorithm = field(default_factory=TopNoises)
    """Runs until it would finish an image; that move of it is not made."""
    second: Adopting = field(default_factory=CoDe)
    """Goes on from what first left alive, best first, at whatever steps they are, by its method
    `adopt` (core.Adopting): code, svdd, rbf, verifier-threshold, epsilon-greedy, smc, best-first or
    search-over-paths. What first spent is counted, and second plans with the rest of the budget."""
    n: int | None = None
    """Of second; None for as many as the budget affords, where first has a number of seeds."""
    share: float | None = None
    """Of the budget, for pruning, where first is a seed pruning without a number of seeds. It is
    known for a given budget only, and n of second is fitted by searches without a budget: then
    second must have its n."""
    lockstep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        first = make_algorithm(self.first)
        second = make_algorithm(self.second)
        if not isinstance(second, Adopting):
            raise ValueError(
                f"{name_of(second)} cannot go on from given noises; second may be code, rbf,"
                " smc, ..."
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(
                f"share is that of the budget which pruning may take, in (0, 1), got {self.share}"
            )
        if first.n is None and (self.share is None or not isinstance(first, SeedPruning)):
            raise ValueError(
                f"first needs its number of seeds: set n of {name_of(first)}, or share for a"
                " pruning"
            )
        if self.n is not None and self.n != second.n:
            second = make_algorithm(second, n=self.n)
        if self.share is not None and first.n is None and second.n is None:
            raise ValueError(
                f"share leaves {name_of(second)} a part of the budget that it cannot be fitted to:"
                " set its n"
            )
        for name, value in {"first": first, "second": second, "n": second.n}.items():
            object.__setattr__(self, name, value)

    @property
    def needs(self) -> Needs:
        return self.first.needs | self.second.needs

    def init(self, task: Task) -> NestedState:
        self.second.init(task)  # complains now, not when the survivors are paid
        first = self.first
        if isinstance(first, SeedPruning) and first.n is None:
            first = self._sized(first, task)
        return NestedState(task, first, first.init(task))

    def _sized(self, first: SeedPruning, task: Task) -> SeedPruning:
        """With as many seeds as `share` of the budget prunes, at least one."""
        if not np.isfinite(task.allowance):
            raise ValueError("the share of a budget needs one in evaluations, FLOPs or seconds")
        if not first.pruning_cost(1, task):
            raise ValueError(
                f"{name_of(first)} has no check, so it would finish all seeds; give it keep and"
                " levels"
            )
        most = (self.share or 0.0) * task.allowance
        n = 1
        while first.pruning_cost(n + 1, task) <= most:
            n += 1
        return dataclasses.replace(first, n=n)

    def step(
        self, state: NestedState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, NestedState]:
        move, inner = state.algorithm.step(state.inner, particles, rng)
        if state.adopted:
            return move, state._replace(inner=inner)
        if move is not None and len(move) and move.rows.stop.max() < state.task.grid.steps:
            return move, state._replace(inner=inner)
        if not len(particles):
            raise ValueError(
                f"{name_of(self.first)} takes its seeds to the end at once; first must stop before"
                " that"
            )
        ready = particles.alive & ~particles.finished
        if move is not None:
            ready[move.drop] = False
        if not ready.any():
            return None, state
        # What first gives up is dropped with second's first move; until then it must not be seen.
        left = dataclasses.replace(particles, alive=ready)
        second = self.second
        move, inner = second.step(
            second.adopt(second.init(state.task), left.ranked(), left), left, rng
        )
        if move is not None:
            move = dataclasses.replace(
                move, drop=np.union1d(move.drop, np.flatnonzero(particles.alive & ~ready))
            )
        return move, NestedState(state.task, second, inner, True)
