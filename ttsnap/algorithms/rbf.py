"""Rollover budget forcing (RBF, arXiv 2503.19385, Algorithm 1).

Each stream draws candidates for its next step one by one. The first whose x0 estimate scores above
the stream's best so far is taken at once, and the rest of the step's quota rolls over to the next.
When none does, the step's best is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from ttsnap.algorithms import name_of
from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import Need
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Settings


class Stream(NamedTuple):
    """One path."""

    at: int
    """Uid of its state."""
    best: float
    """The best score so far."""
    quota: int
    """Candidates left for this step."""
    top: int = -1
    """Uid of this step's best candidate, or -1."""


class RBFState(NamedTuple):
    """What the search remembers between moves."""

    task: Task
    streams: tuple[Stream, ...] = ()
    base: int = 0
    """Quota of a step."""
    bars: tuple[float, ...] = ()
    """Scores to pass at each step, for algorithms that fix them."""
    drew: bool = False
    """Whether the last move was to bring candidates."""
    done: bool = False


@dataclass(frozen=True)
class RBF(Settings):
    """The quota of a stream and step is int((allowance - noises) / (steps * streams)), in
    candidates. What finishing may take is kept back; the last step before the image takes all else
    that is left."""

    streams: Count = 2
    """Paths in lockstep [arXiv 2503.19385]."""
    initial: Count = 25
    """Noises of each, of which the best is its start; they are paid first, so take fewer for
    smaller budgets [arXiv 2503.19385, for 500 evaluations and 10 steps]."""
    finish: Literal["best", "published"] = "best"
    """"best", the best candidate ever seen, denoised to the end, or "published", the best of the
    streams' present step [ours]."""
    needs = frozenset({Need.BRANCH})
    lockstep: ClassVar[bool] = False
    exhaustive: ClassVar[bool] = True  # the last step before the image takes all that is left

    @property
    def n(self) -> int:
        return self.streams * self.initial

    def init(self, task: Task) -> RBFState:
        if task.allowance == float("inf"):
            raise ValueError(
                f"{name_of(self)} plans by its budget; give one in NFE, FLOPs or seconds"
            )
        return RBFState(task)

    def adopt(self, state: RBFState, uids: IntArray, particles: Particles) -> RBFState:
        """Start from these living particles, best first, in place of noises of its own: one stream
        from each.

        The quota is of the steps that they still have before them.
        """
        task = state.task
        grid = state.task.grid
        at = uids[: self.streams]
        ahead = (
            grid.nfe
            - grid.calls[particles.step[at]]
            + (grid.steps - particles.step[at]) * task.checking
        )
        base = max(0, int(particles.left / max(1.0, float(ahead.sum())) + 1e-9))
        streams = tuple(
            Stream(u, v, base)
            for u, v in zip(at.tolist(), particles.value(at).tolist(), strict=True)
        )
        return state._replace(streams=streams, base=base)

    def step(
        self, state: RBFState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, RBFState]:
        task = state.task
        now = len(particles)
        particles.selection.check_scores_each(name_of(self))
        if state.done:
            return None, state
        if not now:
            room = task.allowance - task.keep * task.evaluations(0, task.grid.steps, paid=True)
            return fresh(max(1, min(self.n, int(room / task.evaluations(0, 0) + 1e-9))), 0), state
        if not state.streams:  # noises by turns, so that a cut leaves no stream without
            noises = [np.arange(i, now, self.streams) for i in range(min(self.streams, now))]
            state = self.adopt(
                state, np.array([u[particles.value(u).argmax()] for u in noises]), particles
            )
        children = particles.moved[1::2] if state.drew else np.empty(0, int)
        stuck = state.drew and (children < 0).all()  # some other cap than the allowance is reached
        state = self._learn(state, children[children >= 0], particles)
        finalists = self._finalists(state, particles)
        parents = [] if stuck else self._affordable(state, finalists, particles)
        if not parents:
            final = [*finalists, *(u for u in particles.ranked().tolist() if u not in finalists)][
                : task.keep
            ]
            drop = particles.others(final)
            return advance(particles, final, task.grid.steps, drop=drop), state._replace(done=True)
        # A particle that waits beside its child keeps its state, and its evaluation, for the next
        # candidate.
        rows = np.repeat(parents, 2)
        child = np.tile([False, True], len(parents))
        needed = [*finalists, *(u for s in state.streams for u in (s.at, s.top))]
        drop = particles.others(needed)
        move = advance(particles, rows, particles.step[rows] + child, score=child, drop=drop)
        return move, state._replace(drew=True)

    def _learn(self, state: RBFState, candidates: IntArray, particles: Particles) -> RBFState:
        """Take in the last move's candidates, as far as they were carried out."""
        new = {int(particles.parent[u]): u for u in candidates.tolist()}
        streams = tuple(
            self._judge(s, new[s.at], state, particles) if s.at in new else s for s in state.streams
        )
        return state._replace(streams=streams)

    def _judge(self, s: Stream, uid: int, state: RBFState, particles: Particles) -> Stream:
        score = float(particles.value([uid])[0])
        step = int(particles.step[uid])
        top = uid if s.top < 0 or score > particles.value([s.top])[0] else s.top
        s = s._replace(top=top, quota=s.quota - 1)
        if self.exhaustive and step == state.task.grid.steps - 1:
            return s
        if self._accepts(score, step, s, state):
            return Stream(uid, score, max(s.quota, 0) + state.base)
        return s if s.quota > 0 else Stream(top, s.best, state.base)

    def _accepts(self, score: float, step: int, stream: Stream, state: RBFState) -> bool:
        return score > stream.best

    def _finalists(self, state: RBFState, particles: Particles) -> list[int]:
        """What would be finished now, best first; "published" by the score at each stream's present
        step."""
        if self.finish == "best":
            return [int(u) for u in particles.ranked()[: state.task.keep]]
        present = np.array([s.top if s.top >= 0 else s.at for s in state.streams])
        return [int(u) for u in particles.ranked(present)]

    def _affordable(self, state: RBFState, finalists: list[int], particles: Particles) -> list[int]:
        """States that can have one more candidate, with enough left to finish whatever may then
        have to be."""
        task = state.task
        end = state.task.grid.steps
        open_ = [s.at for s in state.streams if particles.step[s.at] + 1 < end]
        while open_:
            ends = particles.step[open_] + 1
            cost = sum(task.evaluations(k - 1, k, paid=True) for k in ends)
            held = sorted(
                task.evaluations(k, end, paid=True) for k in (*particles.step[finalists], *ends)
            )
            if cost + sum(held[-task.keep :]) <= particles.left + 1e-9:
                break
            open_.pop()
        return open_
