"""Seed pruning on x0 estimates (TTSnap, arXiv 2511.22242, Algorithm 1).

Start n seeds; at a few noise levels score the x0 estimates and keep the best share; finish the rest; return the
best by the reward on the finished image. With an ordinary reward this is the paper's TTSp, with a noise-aware one
TTSnap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.algorithms.planning import evaluations
from ttsnap.core.grid import Task
from ttsnap.core.looks import look_of
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles


class State(NamedTuple):
    """`least` particles survive every check; `checks` to come, as (step, share kept), the last at the end."""

    least: int
    checks: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SeedPruning:
    """A check at step s costs s + 1 evaluations a seed. As many survive as images are to be returned; halves round up.

    n: seeds; None for as many as the budget affords.
    keep: share kept at each check, in (0, 1].
    levels: where the checks are, as noise levels sigma / (alpha + sigma) in (0, 1] (1: pure noise), falling; they are
        the same for any number of steps.
    steps: the checks as grid steps, rising, in place of levels.
    draft: m > 1: the first check scores a provisional image, for which the rest of a seed's way is denoised in m large
        steps instead of in one (core.Rollout). That takes m - 1 more evaluations for each seed, which are not
        reused: survivors go on from where they were.

    The default is one late cut [ours], since ordinary rewards rank early estimates badly: not the best for any one
    model, but never far below best-of-N. `ttsnap tune` fits a schedule to a recording.
    """

    n: int | None = None
    keep: tuple[float, ...] = (0.3,)
    levels: tuple[float, ...] = (0.6,)
    steps: tuple[int, ...] | None = None
    draft: int = 1
    lockstep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in {"keep": self.keep, "levels": self.levels, "steps": self.steps}.items():
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        checks = self.steps if self.steps is not None else self.levels
        if self.n is not None and self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.draft < 1:
            raise ValueError(f"draft must be at least 1, got {self.draft}")
        if len(self.keep) != len(checks):
            raise ValueError(f"{len(self.keep)} keep ratios {self.keep} for {len(checks)} checks {checks}")
        if not all(0 < k <= 1 for k in self.keep):
            raise ValueError(f"keep ratios must be in (0, 1], got {self.keep}")
        if self.steps is None and not all(0 < a <= 1 for a in self.levels):
            raise ValueError(f"levels must be in (0, 1], 1 being pure noise, got {self.levels}")
        if not all(a < b if self.steps is not None else a > b for a, b in pairwise(checks)):
            raise ValueError(f"checks must go from noisy to clean (steps rising, levels falling), got {checks}")

    @property
    def needs(self) -> Needs:
        return look_of(self.draft).needs

    def init(self, task: Task) -> State:
        """The checks to come; those that fall on one step of a coarse grid are merged."""
        grid = task.grid
        at = self.steps if self.steps is not None else [grid.step_at(level) for level in self.levels]
        if any(not 0 <= s < grid.steps for s in at):
            last = grid.steps - 1
            raise ValueError(f"checks at steps {list(at)} do not fit a grid of {grid.steps} steps (0..{last})")
        merged: dict[int, float] = {}
        for step, share in zip(at, self.keep, strict=True):
            merged[step] = merged.get(step, 1.0) * share
        return State(task.keep, (*merged.items(), (grid.steps, 1.0)))

    def pruning_cost(self, n: int, task: Task) -> float:
        """What it takes to bring n seeds to the last check, in evaluations as Task counts them, all looks included."""
        *checks, _ = self.init(task).checks
        look, at = look_of(self.draft), checks[0][0]
        drafts = int(look.evaluations(np.array([at]), task.grid)[0]) - 1
        total = n * (evaluations(task, 0, at, paid=False) + drafts)
        for (_, share), (step, _) in pairwise(checks):
            n = max(task.keep, self.survivors(n, share))
            total, at = total + n * evaluations(task, at, step, paid=True), step
        return total

    def survivors(self, n: int, share: float) -> int:
        """How many of n particles a check keeps of which this share is to stay; halves are rounded up."""
        return math.floor(share * n + 0.5)

    def step(self, state: State, particles: Particles, rng: np.random.Generator) -> tuple[Move | None, State]:
        if not len(particles):
            return fresh(self.n or 1, state.checks[0][0], look=look_of(self.draft)), state
        (_, share), *ahead = state.checks
        if not ahead:
            return None, state
        ranked = particles.ranked()
        kept = max(state.least, self.survivors(ranked.shape[-1], share))
        move = advance(particles, ranked[..., :kept], ahead[0][0], drop=ranked[..., kept:])
        return move, State(state.least, tuple(ahead))


def ttsnap(
    n: int | None = None,
    keep: tuple[float, ...] = (0.4, 0.4, 0.5),
    levels: tuple[float, ...] = (0.9, 0.7, 0.45),
    steps: tuple[int, ...] | None = None,
) -> SeedPruning:
    """Seed pruning with the paper's single-reward schedule (steps 2, 6, 11 of 20): for noise-aware rewards.

    n: seeds; None for as many as the budget affords.
    keep: share kept at each check, in (0, 1] [arXiv 2511.22242].
    levels: noise levels of the checks, falling [arXiv 2511.22242].
    """
    return SeedPruning(n, keep, levels, steps)
