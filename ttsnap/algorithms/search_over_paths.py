"""Search over paths (Ma et al., arXiv 2501.09732): noise a few streams forward, denoise them
further, keep the best.

Forward noising is exact (samplers.forward), so that candidates differ under deterministic samplers,
too. The paper's Delta_f is `back` here, and Delta_b is `back` + `ahead`: streams always end up
below where they were, so it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from annotated_types import Interval

from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Grid, Task
from ttsnap.core.moves import Move, advance, fresh, renoise
from ttsnap.core.needs import Need
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, Settings

_EPS = 1e-6
"""Levels of a grid come from float32 times, and sums of them are to meet them again."""


class PathsState(NamedTuple):
    """What the search remembers between moves."""

    grid: Grid
    streams: int
    """Paths that go on."""
    at: int = 0
    """Step that the last move went to; 0: none yet."""
    given: tuple[int, ...] = ()
    """Particles to start from."""
    kept: tuple[int, ...] = ()
    """Parents of the last move."""


@dataclass(frozen=True)
class SearchOverPaths(Settings):
    """Streams are denoised to `start`, then noised by `back` and denoised to `ahead` below where
    they were. The defaults score at levels .5 and .2 before the images: estimates above .5 tell
    little, and from .8 noised to .9 composition is still open. A candidate's rounds cost little
    more than an image."""

    n: Count | None = None
    """Noisings of each stream a round; None for as many as the budget affords [arXiv 2503.19385
    compares with 5]."""
    streams: Count = 2
    """Paths, at least as many as images are asked for. With a budget below about ten images take 1,
    since n becomes 1 otherwise and nothing is chosen [as compared in arXiv 2503.19385]."""
    start: Annotated[float, Interval(gt=0, lt=1)] = 0.8
    """Noise level to which seeds are denoised first [ours]."""
    back: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Noise level added in a round [ours]."""
    ahead: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    """Noise level removed in a round beyond what was added [ours]."""
    legs: tuple[Count, Count] | None = None
    """In place of levels: evaluations up to a choice, and the steps of noise between that and the
    next [10, 5 in DOG-Trim]."""
    needs = frozenset({Need.RENOISE})
    lockstep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.legs is not None and self.legs[0] <= self.legs[1]:
            raise ValueError(f"legs must go further than they go back, got {list(self.legs)}")

    def init(self, task: Task) -> PathsState:
        if task.grid.steps < 3:
            raise ValueError(
                f"search over paths needs 3 steps, to have one to go back to; got {task.grid.steps}"
            )
        return PathsState(task.grid, max(self.streams, task.keep))

    def adopt(self, state: PathsState, uids: IntArray, particles: Particles) -> PathsState:
        """Go on from these living particles, best first, in place of fresh seeds: first to the
        level `start`, or where they are beyond it, a step further than the foremost."""
        return state._replace(given=tuple(np.asarray(uids, int)[: state.streams].tolist()))

    def step(
        self, state: PathsState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, PathsState]:
        grid = state.grid
        at = state.at
        end = state.grid.steps
        if not at:
            first = self.legs[0] - 1 if self.legs else grid.step_at(self.start + _EPS)
            first = int(np.clip(first, 2, end - 1))
            # All streams go on, so there is nothing to score for.
            if not state.given:
                return fresh(state.streams, first, score=False), state._replace(at=first)
            first = max(first, int(particles.step[list(state.given)].max()) + 1)
            return advance(particles, state.given, first, score=first == end), state._replace(
                at=first
            )
        if at == end:
            return None, state
        uids = particles.moved[particles.moved >= 0]
        ranked = particles.ranked(uids)
        kept = ranked[: state.streams]
        start, stop = self._leg(grid, at)
        # In turn, so that a budget that does not last for all leaves each stream some.
        parents = np.tile(kept, self.n or 1)
        gone = np.concatenate([ranked[state.streams :], np.array(state.kept, int)])
        move = renoise(parents, start, stop, drop=gone)
        return move, PathsState(grid, state.streams, stop, kept=tuple(kept.tolist()))

    def _leg(self, grid: Grid, at: int) -> tuple[int, int]:
        """The steps that streams at this one are noised to, and denoised to from there."""
        if self.legs is None:
            level = grid.levels[at]
            start = grid.step_at(min(1.0, level + self.back + _EPS))
            stop = max(at + 1, grid.step_at(max(0.0, level - self.ahead) + _EPS))
        else:  # the evaluation that an estimate takes is the last of its leg
            ahead, back = self.legs
            start = at + 1 - back
            stop = at + ahead - back
            stop = stop if stop + 1 < grid.steps else grid.steps
        return int(np.clip(start, 1, at - 1)), stop
