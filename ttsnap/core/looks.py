"""Looks: what of an unfinished particle is scored where a row of a move stops, and what that takes.

A finished image is scored as it is, whatever the look.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.needs import Need


class Estimator(ABC):
    """How an unfinished particle is looked at. Its pixels and reward calls are priced by the engine's Price."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the engine must be able to do."""
        return frozenset()

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in recordings and messages."""

    @abstractmethod
    def evaluations(self, stop: IntArray, grid: Grid) -> IntArray:
        """Evaluations (n,) that a look at steps `stop` (n,), all before the last, is made with.

        The first is the particle's own at that step, which is paid once: the particle goes on with it later. 0 for a
        look that is made without it.
        """

    def draft_calls(self, stop: IntArray) -> IntArray:
        """Calls (n,) of the engine's drafter that a look at steps `stop` (n,) is made with."""
        return np.zeros(stop.shape, int)

    def at(self, stop: int) -> Estimator:
        """The look at particles that stop at this step: this one, but for a look that differs from step to step."""
        return self


@dataclass(frozen=True)
class Estimate(Estimator):
    """The x0 estimate of the evaluation at the step where a particle stops (Tweedie's formula)."""

    name: ClassVar[str] = "estimate"

    def evaluations(self, stop: IntArray, grid: Grid) -> IntArray:
        return np.ones(stop.shape, int)


@dataclass(frozen=True)
class Rollout(Estimator):
    """The x0 estimate at the end of a coarse rollout by the ODE, over later grid points: sharper, and dearer.

    The particle itself stays where it is, and does not follow the rollout afterwards.
    """

    calls: int = 2
    """Evaluations of the rollout, from 1 on (1 is the x0 estimate); fewer where fewer steps are left."""
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ROLLOUT})

    def __post_init__(self) -> None:
        if self.calls < 1:
            raise ValueError(f"a rollout takes at least 1 evaluation, got {self.calls}")

    @property
    def name(self) -> str:
        return f"rollout:{self.calls}"

    def points(self, stop: int, steps: int) -> list[int]:
        """Grid steps after `stop`, where the first evaluation is made, at which the others are."""
        points = [stop + round(j * (steps - stop) / self.calls) for j in range(1, self.calls)]
        return sorted({k for k in points if stop < k < steps})

    def evaluations(self, stop: IntArray, grid: Grid) -> IntArray:
        return np.array([1 + len(self.points(k, grid.steps)) for k in stop.ravel().tolist()], int).reshape(stop.shape)


@dataclass(frozen=True)
class Draft(Estimator):
    """A guess by the engine's drafter at the image in which the deterministic sampler ends from here.

    A drafter is a network that was distilled to jump there. It makes sharp images, where the x0 estimate is a posterior
    mean, and a reward tells more of them (docs/drafts.md). The evaluation at the stop is not made.
    """

    calls: int = 1
    """Calls of the drafter, from 1 on; later ones go on from the guess of the one before."""
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DRAFT})

    def __post_init__(self) -> None:
        if self.calls < 1:
            raise ValueError(f"a draft takes at least 1 call of the drafter, got {self.calls}")

    @property
    def name(self) -> str:
        return f"draft:{self.calls}"

    def evaluations(self, stop: IntArray, grid: Grid) -> IntArray:
        return np.zeros(stop.shape, int)

    def draft_calls(self, stop: IntArray) -> IntArray:
        return np.full(stop.shape, self.calls)


ESTIMATE = Estimate()


@dataclass(frozen=True)
class ByStep(Estimator):
    """A look of its own at each of these steps, and the x0 estimate at all others: {step: look}.

    Rows of one move may stop at several steps, and each is scored as is planned for its step.
    """

    looks: Mapping[int, Estimator]
    name: ClassVar[str] = "by step"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(need for look in self.looks.values() for need in look.needs)

    def evaluations(self, stop: IntArray, grid: Grid) -> IntArray:
        return self._by_step(stop, lambda look: look.evaluations(stop, grid))

    def draft_calls(self, stop: IntArray) -> IntArray:
        return self._by_step(stop, lambda look: look.draft_calls(stop))

    def at(self, stop: int) -> Estimator:
        return self.looks.get(stop, ESTIMATE)

    def _by_step(self, stop: IntArray, count: Callable[[Estimator], IntArray]) -> IntArray:
        """What `count` says of the look at each of these steps (n,)."""
        counts = count(ESTIMATE)
        for step, look in self.looks.items():
            counts = np.where(stop == step, count(look), counts)
        return counts


_WRITTEN = re.compile(r"(estimate|rollout|draft)(?::([0-9]{1,4}))?")


def read_look(name: str) -> Estimator:
    """The look of this name: "estimate", "rollout:3", "draft:1". ValueError for another text."""
    match = _WRITTEN.fullmatch(name)
    if match is None or (match[1] == "estimate") != (match[2] is None):
        raise ValueError(f"unknown look {name[:40]!r}; looks are written estimate, rollout:3 or draft:1")
    return ESTIMATE if match[2] is None else (Rollout if match[1] == "rollout" else Draft)(int(match[2]))


class EstimatorAt(NamedTuple):
    """A look at one grid step, by the look's name; written "draft:1@0"."""

    look: str
    step: int

    def __str__(self) -> str:
        return f"{self.look}@{self.step}"

    @classmethod
    def read(cls, text: str) -> EstimatorAt:
        """From such a text. ValueError for another."""
        name, _, step = text.partition("@")
        if not re.fullmatch("[0-9]{1,6}", step):
            raise ValueError(f"a look and its step are written like draft:1@0, got {text[:40]!r}")
        return cls(read_look(name).name, int(step))


def estimates(*steps: int) -> tuple[EstimatorAt, ...]:
    """The x0 estimate at each of these steps; at the last one of a grid, the finished image."""
    return tuple(EstimatorAt(ESTIMATE.name, step) for step in steps)


def look_of(calls: int) -> Estimator:
    """The look of so many evaluations: the x0 estimate for 1, else a rollout. ValueError below 1."""
    if calls < 1:
        raise ValueError(f"a look takes at least 1 evaluation, got {calls}")
    return ESTIMATE if calls == 1 else Rollout(calls)
