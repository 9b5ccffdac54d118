"""Looks: what of an unfinished particle is scored where a row of a move stops, and what that takes.

A finished image is scored as it is, whatever the look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.needs import Need


class Look(Protocol):
    """How an unfinished particle is looked at. Its pixels and reward calls are priced by the engine's Price."""

    @property
    def name(self) -> str:
        """What it is called in recordings and messages."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the engine must be able to do."""

    def evaluations(self, stop: IntArray, grid: Grid) -> IntArray:
        """Evaluations (n,) that a look at steps `stop` (n,), all before the last, is made with.

        The first is the particle's own at that step, which is paid once: the particle goes on with it later.
        """


@dataclass(frozen=True)
class Estimate:
    """The x0 estimate of the evaluation at the step where a particle stops (Tweedie's formula)."""

    name: str = "estimate"
    needs: frozenset[Need] = frozenset()

    def evaluations(self, stop: IntArray, grid: Grid) -> IntArray:
        return np.ones(stop.shape, int)


@dataclass(frozen=True)
class Rollout:
    """The x0 estimate at the end of a coarse rollout by the ODE, over later grid points: sharper, and dearer.

    The particle itself stays where it is, and does not follow the rollout afterwards.

    calls: evaluations of the rollout, from 1 on (1 is the x0 estimate); fewer where fewer steps are left.
    """

    calls: int = 2
    needs: frozenset[Need] = frozenset({Need.ROLLOUT})

    @property
    def name(self) -> str:
        return f"rollout:{self.calls}"

    def points(self, stop: int, steps: int) -> list[int]:
        """Grid steps after `stop`, where the first evaluation is made, at which the others are."""
        points = [stop + round(j * (steps - stop) / self.calls) for j in range(1, self.calls)]
        return sorted({k for k in points if stop < k < steps})

    def evaluations(self, stop: IntArray, grid: Grid) -> IntArray:
        return np.array([1 + len(self.points(k, grid.steps)) for k in stop.ravel().tolist()], int).reshape(stop.shape)


ESTIMATE = Estimate()


def look_of(calls: int) -> Look:
    """The look of so many evaluations: the x0 estimate for 1, else a rollout. ValueError below 1."""
    if calls < 1:
        raise ValueError(f"a look takes at least 1 evaluation, got {calls}")
    return ESTIMATE if calls == 1 else Rollout(calls)
