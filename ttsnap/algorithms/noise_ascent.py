"""Climb in initial noise along the reward's gradient, in the manner of ReNO (arXiv 2406.04312).

An image's initial noise is turned by an angle towards the gradient of its reward, which keeps its
length: ReNO keeps that near by a penalty, and takes clipped gradient steps of a fixed rate instead.
A step that raises the reward is kept and the angle grows; else the angle is halved, from the same
noise, whose gradient is known already.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.algorithms import name_of
from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, ascend, fresh
from ttsnap.core.needs import Gradient, Needs
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Natural, Settings


class NoiseAscentState(NamedTuple):
    """What the search remembers between moves."""

    end: int
    """The last step of the grid."""
    left: float
    """Steps of the climb that are left."""
    angle: float
    """Of the next step, in radians."""
    pivot: int = -1
    """Uid of the finished image to climb from, -1 before there is one."""
    phase: str = ""
    """What the last move was: "start", "step", or nothing yet."""
    strikes: int = 0
    """Steps in a row that the held-out reward did not like."""
    given: tuple[int, ...] = ()
    """Particles to start from."""


@dataclass(frozen=True)
class NoiseAscent(Settings):
    """A step takes the evaluations of its gradient and an image's; a step that fails halves the
    angle."""

    angle: float = 0.3
    """Of the first step, in radians [ours]."""
    rounds: Count | None = None
    """Steps; None to go on until the budget is used up."""
    ascends: Natural = 0
    """Evaluations that the gradient goes back through, 0 for all; memory does not grow with it,
    time does."""
    target: float | None = None
    """Reward at which to stop; None for no such stop."""
    held_out: Natural | None = None
    """Which of the rewards, from 0, is not climbed but watched: an image that it likes less than
    the one climbed from is not returned. Three of those in a row end the climb; None for no such
    reward."""
    weights: tuple[float, ...] | None = None
    """Of the rewards in the gradient, as `utility` should have them, 0 for the held-out one; None
    for all alike."""
    least: float = 0.02
    """Angle in radians below which a fresh seed is started, where rounds is None [ours]."""
    n: ClassVar[int] = 1
    lockstep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least <= self.angle <= math.pi / 2:
            raise ValueError(
                f"angles must be 0 < least <= angle <= pi / 2, got {self.least} and {self.angle}"
            )
        if self.held_out is None:
            return
        if self.weights is None:
            raise ValueError(
                f"held_out is the index of a reward, 0 for the first, and needs weights "
                f"with 0 at that index; got {self.held_out} and {self.weights}"
            )
        if self.held_out >= len(self.weights) or self.weights[self.held_out]:
            raise ValueError(
                f"the held-out reward {self.held_out} must have weight 0, got {self.weights}"
            )

    @property
    def needs(self) -> Needs:
        return frozenset({Gradient(self.ascends, self.weights)})

    def init(self, task: Task) -> NoiseAscentState:
        if self.rounds is None and not np.isfinite(task.allowance):
            raise ValueError(
                "noise-ascent goes on until the budget is used up: give rounds, or a budget in "
                "evaluations, FLOPs or seconds"
            )
        return NoiseAscentState(
            task.grid.steps, math.inf if self.rounds is None else self.rounds, self.angle
        )

    def adopt(
        self, state: NoiseAscentState, uids: IntArray, particles: Particles
    ) -> NoiseAscentState:
        """Go on from these living particles, best first, finished or not, in place of fresh
        seeds."""
        return state._replace(given=tuple(np.asarray(uids, int).tolist()))

    def step(
        self, s: NoiseAscentState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, NoiseAscentState]:
        if not s.phase:
            particles.selection.check_scores_each(name_of(self))
            return self._start(s, particles)
        drop = reject = np.empty(0, int)
        new = int(particles.moved[0])
        if s.phase == "start":
            s = s._replace(pivot=new)
        else:
            worse = self._disliked(new, s.pivot, particles)
            better = not worse and particles.value([new])[0] > particles.value([s.pivot])[0]
            drop = np.array([s.pivot if better else new])
            reject = np.array([new] if worse else [], int)
            s = s._replace(strikes=s.strikes + 1 if worse else 0, left=s.left - 1)
            s = (
                s._replace(pivot=new, angle=min(1.5 * s.angle, math.pi / 2))
                if better
                else s._replace(angle=s.angle / 2)
            )
        reached = self.target is not None and particles.value([s.pivot])[0] >= self.target
        if reached or s.left <= 0 or s.strikes >= 3:
            # A move without rows is the end, too, and leaves an image out.
            return dataclasses.replace(fresh(0, 0), reject=reject) if len(reject) else None, s
        if s.angle < self.least and self.rounds is None:
            move, s = self._start(s._replace(angle=self.angle), particles)
        else:
            move = ascend([s.pivot], math.cos(s.angle), s.end)
            s = s._replace(phase="step")
        return dataclasses.replace(move, drop=drop, reject=reject), s

    def _start(self, s: NoiseAscentState, particles: Particles) -> tuple[Move, NoiseAscentState]:
        if not s.given:
            return fresh(1, s.end), s._replace(phase="start", strikes=0)
        pivot = s.given[0]
        s = s._replace(phase="start", pivot=s.given[0], given=s.given[1:], strikes=0)
        if particles.finished[pivot]:
            return ascend([pivot], math.cos(s.angle), s.end), s._replace(phase="step")
        return advance(particles, [pivot], s.end), s

    def _disliked(self, new: int, old: int, particles: Particles) -> bool:
        """Whether the held-out reward is lower than before."""
        if self.held_out is None:
            return False
        before, after = particles.scores[[old, new], -1, self.held_out]
        return not after >= before
