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
from ttsnap.core.needs import Need


class Estimator(ABC):
    """How an unfinished particle is looked at. Its pixels and reward calls are priced by the
    engine's Price."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the engine must be able to do."""
        return frozenset()

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in recordings and messages."""

    @abstractmethod
    def evaluations(self, stop: IntArray) -> IntArray:
        """Evaluations (n,), 0 or 1, that a look at steps `stop` (n,), all before the last, is made
        with.

        It is the particle's own at that step, which is paid once: the particle goes on with it
        later.
        """

    def draft_calls(self, stop: IntArray) -> IntArray:
        """Calls (n,) of the engine's drafter that a look at steps `stop` (n,) is made with."""
        return np.zeros(stop.shape, int)

    def at(self, stop: int) -> Estimator:
        """The look at particles that stop at this step: this one, but for a look that differs from
        step to step."""
        return self


@dataclass(frozen=True)
class Estimate(Estimator):
    """The x0 estimate of the evaluation at the step where a particle stops (Tweedie's formula)."""

    name: ClassVar[str] = "estimate"

    def evaluations(self, stop: IntArray) -> IntArray:
        return np.ones(stop.shape, int)


@dataclass(frozen=True)
class Draft(Estimator):
    """A guess by the engine's drafter at the image in which the deterministic sampler ends from
    here.

    A drafter is a network that was distilled to jump there. It makes sharp images, where the x0
    estimate is a posterior mean, and a reward tells more of them (docs/drafts.md). The evaluation
    at the stop is not made.
    """

    calls: int = 1
    """Calls of the drafter, from 1 on; later ones go on from the guess of the one before."""
    needs = frozenset({Need.DRAFT})

    def __post_init__(self) -> None:
        if self.calls < 1:
            raise ValueError(f"a draft takes at least 1 call of the drafter, got {self.calls}")

    @property
    def name(self) -> str:
        return f"draft:{self.calls}"

    def evaluations(self, stop: IntArray) -> IntArray:
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

    def evaluations(self, stop: IntArray) -> IntArray:
        return self._by_step(stop, lambda look: look.evaluations(stop))

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


@dataclass(frozen=True)
class InTurn(Estimator):
    """A look for each row, in their order."""

    looks: tuple[Estimator, ...]
    name: ClassVar[str] = "in turn"

    def evaluations(self, stop: IntArray) -> IntArray:
        return np.array(
            [int(look.evaluations(at)) for look, at in zip(self.looks, stop, strict=True)], int
        )

    def draft_calls(self, stop: IntArray) -> IntArray:
        return np.array(
            [int(look.draft_calls(at)) for look, at in zip(self.looks, stop, strict=True)], int
        )


_WRITTEN = re.compile(r"(estimate|draft)(?::([0-9]{1,4}))?")


def read_look(name: str) -> Estimator:
    """The look of this name: "estimate", "draft:1". ValueError for another text."""
    match = _WRITTEN.fullmatch(name)
    if match is None or (match[1] == "estimate") != (match[2] is None):
        raise ValueError(f"unknown look {name[:40]!r}; looks are written estimate or draft:1")
    return ESTIMATE if match[2] is None else Draft(int(match[2]))


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
