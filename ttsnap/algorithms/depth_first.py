"""Depth-first search (classical search, arXiv 2505.23614): denoise one particle, and back up where
it looks bad.

At each check, an x0 estimate that scores below the threshold sends the particle back by forward
noising, while tries last; then the best that was seen at this check goes on. Thresholds from scores
seen so far are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from annotated_types import Interval

from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, fresh, renoise
from ttsnap.core.needs import Need
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Fraction, Natural, Settings, Share


class DepthFirstState(NamedTuple):
    """What the search remembers between moves."""

    task: Task
    checks: tuple[int, ...]
    """Steps of the checks, the last the end."""
    tries: float
    """How often it may still back up."""
    j: int = -1
    """Check that the particle was last sent to; -1: none yet."""


@dataclass(frozen=True)
class DepthFirst(Settings):
    """Backs up by forward noising where a check looks bad, while tries last; then takes the best
    that it saw."""

    levels: tuple[Annotated[float, Interval(gt=0, lt=1)], ...] = (0.8, 0.6, 0.4)
    """Noise levels of the checks, falling [ours; in arXiv 2505.23614 every few steps from a first
    one on]."""
    back: Fraction = 0.3
    """By how much noise level a particle is sent back [ours]."""
    thresholds: tuple[float, ...] | None = None
    """Least utility to pass each check, and last the finished image; the search ends with an image
    that does [the paper]. None for the `quantile` of the scores seen at the same check so far; the
    search then goes on with fresh seeds until the budget is used up [ours]."""
    quantile: Share = 0.75
    """Of the scores seen, where there are no thresholds [ours]."""
    tries: Natural | None = None
    """How often it may back up; None for as often as the budget affords [arXiv 2505.23614 has a
    number]."""
    needs = frozenset({Need.RENOISE})
    lockstep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or np.any(np.diff(self.levels) >= 0):
            raise ValueError(f"levels must fall within (0, 1), got {self.levels}")
        if self.thresholds is not None and len(self.thresholds) != len(self.levels) + 1:
            raise ValueError(
                f"need a threshold for each of the levels {self.levels} and one for the finished"
                f" image, got {self.thresholds}"
            )

    @property
    def n(self) -> int:
        return 1

    def init(self, task: Task) -> DepthFirstState:
        if self.tries is None and not np.isfinite(task.allowance):
            raise ValueError(
                "depth-first goes on until the budget is used up: give tries, or a budget in"
                " evaluations, FLOPs or seconds"
            )
        steps = [task.grid.step_at(level + 1e-6) for level in self.levels]
        if len(set(steps)) < len(steps):
            raise ValueError(
                f"levels {self.levels} fall on one step of a grid of {task.grid.steps}: give fewer"
            )
        return DepthFirstState(
            task, (*steps, task.grid.steps), math.inf if self.tries is None else self.tries
        )

    def step(
        self, state: DepthFirstState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, DepthFirstState]:
        task = state.task
        j = state.j
        end = state.task.grid.steps
        if j < 0:
            return self._start(state, particles, 0)
        at = state.checks[j]
        uid = int(particles.moved[0])
        passes = self._passes(state, particles, uid)
        if passes and at < end:
            return advance(particles, [uid], state.checks[j + 1]), state._replace(j=j + 1)
        back = max(
            0, min(task.grid.step_at(min(1.0, task.grid.levels[at] + self.back + 1e-6)), at - 1)
        )
        if not passes and state.tries > 0 and self._affords(state, particles, back):
            move, state = self._start(state, particles, back)
            return move, state._replace(tries=state.tries - 1)
        if at == end:
            more = (
                self.thresholds is None
                and np.isfinite(task.allowance)
                and self._affords(state, particles, 0)
            )
            return self._start(state, particles, 0) if more else (None, state)
        resting = np.flatnonzero(
            particles.alive & (particles.step == at) & (particles.scored == at)
        )
        if not len(resting):
            return None, state
        best = resting[[np.argmax(particles.value(resting))]]
        return advance(particles, best, end), state._replace(j=len(self.levels))

    def _passes(self, state: DepthFirstState, particles: Particles, uid: int) -> bool:
        """Whether the particle's score is up to the threshold of its check."""
        seen = particles.scores[:, state.checks[state.j]]
        known = np.flatnonzero(~np.isnan(seen).any(axis=-1))
        if uid not in known:
            return False
        values = particles.selection.values(seen[known])
        least = (
            np.quantile(values, self.quantile)
            if self.thresholds is None
            else self.thresholds[state.j]
        )
        return bool(values[known == uid][0] >= least)

    def _affords(self, state: DepthFirstState, particles: Particles, step: int) -> bool:
        """Whether a particle can be started at `step`, looked at at its first check, and
        finished."""
        task = state.task
        end = state.task.grid.steps
        there = next(s for s in state.checks if s > step)
        cost = task.evaluations(step, there, paid=False)
        cost += task.evaluations(there, end, paid=True) if there < end else 0.0
        return bool(cost <= particles.left + 1e-9)

    def _start(
        self, state: DepthFirstState, particles: Particles, step: int
    ) -> tuple[Move, DepthFirstState]:
        """A new particle to the first check after `step`: the last one noised forward to it, or a
        fresh seed at 0."""
        j, to = next((j, s) for j, s in enumerate(state.checks) if s > step)
        return (renoise(particles.moved, step, to) if step > 0 else fresh(1, to)), state._replace(
            j=j
        )
