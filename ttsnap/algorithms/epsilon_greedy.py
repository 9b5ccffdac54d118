"""Epsilon-greedy search of the noise trajectory (arXiv 2506.03164; public code:
rvignav/diffusion-tts).

At every step a stream tries step noises in rounds: with probability eps fresh ones, else ones near
the best of this step so far, the pivot. The candidate with the best x0 estimate goes on. The public
code adds a vector of length r sqrt(d), r uniform in [0, lam], to the pivot's d numbers. Noise grows
there from round to round, and a worse round replaces the pivot. Here it turns by the same angle and
keeps its size: mix = 1 / sqrt(1 + r^2) of the pivot, and sqrt(1 - mix^2) of fresh noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import Kind, Move, Rows, advance, fresh
from ttsnap.core.needs import Need
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Positive, Settings, Share


class PivotStream(NamedTuple):
    """One path."""

    at: int
    """Uid of its state."""
    top: int = -1
    """Uid of the best candidate of the present step so far, or -1."""


class EpsilonGreedyState(NamedTuple):
    """What the search remembers between moves."""

    steps: int
    """Of the grid."""
    paths: int
    """How many streams there are to be."""
    streams: tuple[PivotStream, ...] = ()
    left: int = 0
    """Candidates that a stream may still try at this step."""
    tried: bool = False
    """Whether the last move was a round of candidates."""


@dataclass(frozen=True)
class EpsilonGreedy(Settings):
    """A stream takes one evaluation for its noise, and n for each step but the last, where samplers
    draw no noise. The first round of a step has no pivot and is all fresh; in the public code it is
    near noise that was not scored. The pivot is the best of the step so far; there, that of the
    last round, so that a better one may be lost."""

    n: Count | None = None
    """Candidates of a stream at each step; None for as many as the budget affords [80 in
    rvignav/diffusion-tts]."""
    width: Count = 4
    """Candidates of a round [rvignav/diffusion-tts, in 20 rounds]."""
    eps: Share = 0.4
    """Probability of fresh noise [rvignav/diffusion-tts]."""
    lam: Positive = 0.15
    """How far other noise is from the best of the step so far, at most [rvignav/diffusion-tts]."""
    streams: Count = 1
    """Paths, at least as many as images are asked for [rvignav/diffusion-tts]."""
    needs = frozenset({Need.BRANCH, Need.NEAR})
    lockstep: ClassVar[bool] = False

    def init(self, task: Task) -> EpsilonGreedyState:
        return EpsilonGreedyState(task.grid.steps, max(self.streams, task.keep))

    def adopt(
        self, state: EpsilonGreedyState, uids: IntArray, particles: Particles
    ) -> EpsilonGreedyState:
        """Start from these living particles, best first, in place of noises of its own: one stream
        from each.

        Streams go together, so that of particles at several steps only those that are furthest are
        taken.
        """
        uids = uids[particles.step[uids] == particles.step[uids].max()]
        return state._replace(
            streams=tuple(PivotStream(u) for u in uids[: state.paths].tolist()), left=self.n or 1
        )

    def step(
        self, state: EpsilonGreedyState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, EpsilonGreedyState]:
        if not len(particles):
            return fresh(state.paths, 0), state
        if not state.streams:
            state = self.adopt(state, np.arange(len(particles)), particles)
        tried = particles.moved[len(state.streams) :] if state.tried else np.empty(0, int)
        stuck = state.tried and (tried < 0).all()  # the budget afforded no candidate
        state = self._learn(state, tried, particles)
        here = np.array([s.at for s in state.streams])
        step = int(particles.step[here[0]])
        if step == state.steps:
            return None, state
        if stuck or step == state.steps - 1:
            best = np.array([s.at if s.top < 0 else s.top for s in state.streams])
            best = particles.ranked(best)
            state = state._replace(streams=(PivotStream(int(best[0])),))
            return advance(particles, best, state.steps, drop=particles.others(best)), state
        tries = min(self.width, state.left)
        move = self._round(state.streams, step, tries, particles, rng)
        return move, state._replace(left=state.left - tries, tried=True)

    def _learn(
        self, state: EpsilonGreedyState, tried: IntArray, particles: Particles
    ) -> EpsilonGreedyState:
        """Take in the last round, whose candidates (n,) are by turns of the streams, -1 where the
        budget ended. After the last round of a step, streams go on from their best candidates."""
        if not state.tried:
            return state
        streams = []
        for i, stream in enumerate(state.streams):
            candidates = np.append(stream.top, tried[i :: len(state.streams)])
            ranked = particles.ranked(candidates[candidates >= 0])
            streams.append(PivotStream(stream.at, int(ranked[0]) if len(ranked) else -1))
        if state.left:
            return state._replace(streams=tuple(streams))
        ahead = [PivotStream(stream.top) for stream in streams if stream.top >= 0]
        return state._replace(streams=tuple(ahead or streams), left=self.n or 1)

    def _round(
        self,
        streams: tuple[PivotStream, ...],
        step: int,
        tries: int,
        particles: Particles,
        rng: np.random.Generator,
    ) -> Move:
        """A round of candidates, by turns, so that a cut leaves no stream without. States wait, for
        the next round."""
        states, tops = np.array(streams).T
        pivot = np.tile(tops, tries)
        explores = (rng.random(len(pivot)) < self.eps) | (pivot < 0)
        share = 1 / np.sqrt(1 + rng.uniform(0, self.lam, len(pivot)) ** 2)
        parents = np.tile(states, 1 + tries)
        waits = np.arange(len(states) * (1 + tries)) < len(states)
        near = np.append(np.zeros(len(states), bool), ~explores)
        rows = Rows(
            kind=np.where(near, Kind.NEAR, Kind.CONTINUE),
            parent=np.where(near, np.append(states, pivot), parents),
            start=np.full(len(parents), step),
            stop=np.where(waits, step, step + 1),
            score=~waits,
            share=np.append(np.ones(len(states)), np.where(explores, 1.0, share)),
        )
        return Move(rows, drop=particles.others([*states, *tops]))
