"""Zero-order search (Ma et al., arXiv 2501.09732): climb in the space of initial noise, by its
neighbours' images.

The pivot's n neighbours start from mix times its initial noise and sqrt(1 - mix^2) fresh noise; the
best of them is the next pivot if it beats it. Where none does, a fresh seed is, as in the public
implementation (tt-scale-flux).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, fresh, perturb
from ttsnap.core.needs import Need
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Decay, Fraction, Natural, Settings, Share


class ZeroOrderState(NamedTuple):
    """What the search remembers between moves."""

    check: int
    """Step at which neighbours are scored."""
    end: int
    """The last step of the grid."""
    left: float
    """Rounds that are left."""
    phase: str = ""
    """What the last move was: nothing, a "pivot", neighbours up to the "check", or to the "end"."""
    pivot: int = -1
    """Uid of the image whose neighbours are tried."""
    given: tuple[int, ...] = ()
    """Particles to restart from."""


@dataclass(frozen=True)
class ZeroOrder(Settings):
    """A round takes an image's evaluations for each neighbour that is finished."""

    n: Count = 4
    """Neighbours a round [tt-scale-flux]."""
    mix: Decay = 0.95
    """Share of the pivot's noise in theirs, in [0, 1) [tt-scale-flux]."""
    rounds: Natural | None = None
    """How many; None to go on until the budget is used up, one in NFE, FLOPs or seconds [4 in
    tt-scale-flux]."""
    restart: Share = 1.0
    """Probability of a fresh seed where no neighbour is better; 1: at once, 0: never
    [tt-scale-flux]."""
    eps: Share = 0.0
    """Probability that a neighbour starts from fresh noise alone [.4 in DOG-Trim's epsilon-greedy
    baseline]."""
    check: Fraction | None = None
    """Noise level in (0, 1] at which neighbours are scored early; None for no check [ours]."""
    keep: Fraction = 0.5
    """Share of the neighbours that is finished after that check [ours]."""
    needs = frozenset({Need.MIX})
    lockstep: ClassVar[bool] = False

    def init(self, task: Task) -> ZeroOrderState:
        if self.rounds is None and not np.isfinite(task.allowance):
            raise ValueError(
                "zero-order goes on until the budget is used up: give rounds, or a budget in"
                " evaluations, FLOPs or seconds"
            )
        end = task.grid.steps
        check = end if self.check is None else task.grid.step_at(self.check)
        return ZeroOrderState(check, end, math.inf if self.rounds is None else self.rounds)

    def adopt(self, state: ZeroOrderState, uids: IntArray, particles: Particles) -> ZeroOrderState:
        """Go on from these living particles, at step 0 or finished, best first, in place of fresh
        seeds."""
        return state._replace(given=tuple(np.asarray(uids, int).tolist()))

    def step(
        self, state: ZeroOrderState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, ZeroOrderState]:
        if not state.phase:
            return self._begin(state, particles, rng)
        new = np.sort(particles.moved[particles.moved >= 0])
        pivot = int(new[0]) if state.phase == "pivot" else state.pivot
        if state.phase == "check":
            ranked = particles.ranked(new)
            kept = max(1, math.floor(self.keep * len(new) + 0.5))
            move = advance(particles, ranked[:kept], state.end, drop=ranked[kept:])
            return move, state._replace(phase="end")
        lost = np.empty(0, int)
        if state.phase == "end":
            state = state._replace(left=state.left - 1)
            rivals = np.append(pivot, new)
            best = int(rivals[np.argmax(particles.value(rivals))])
            lost = rivals[rivals != best]
            if best == pivot and state.left > 0 and rng.random() < self.restart:
                return self._begin(state, particles, rng, rivals)
            pivot = best
        if state.left <= 0:
            return None, state
        return self._round(state, pivot, rng, lost)

    def _round(
        self, state: ZeroOrderState, pivot: int, rng: np.random.Generator, drop: IntArray
    ) -> tuple[Move, ZeroOrderState]:
        """Neighbours of a pivot, up to the check."""
        phase = "end" if state.check == state.end else "check"
        share = np.where(rng.random(self.n) < self.eps, 0.0, self.mix) if self.eps else self.mix
        move = perturb(np.full(self.n, pivot), share, state.check, drop=drop)
        return move, state._replace(phase=phase, pivot=pivot)

    def _begin(
        self,
        state: ZeroOrderState,
        particles: Particles,
        rng: np.random.Generator,
        drop: IntArray | None = None,
    ) -> tuple[Move, ZeroOrderState]:
        """A pivot that is no one's neighbour. Finished images stay when their particles are given
        up."""
        gone = np.empty(0, int) if drop is None else drop
        if state.given:
            pivot = state.given[0]
            given = state.given[1:]
            state = state._replace(given=given)
            if particles.finished[pivot]:
                return self._round(state, pivot, rng, gone)
            return advance(particles, [pivot], state.end, drop=gone), state._replace(phase="pivot")
        return dataclasses.replace(fresh(1, state.end), drop=gone), state._replace(phase="pivot")
