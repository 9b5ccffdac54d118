"""What the driver of a cluster sends an actor, and what comes back. Both travel between
processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.needs import Need
from ttsnap.core.price import Price

AnswerT = TypeVar("AnswerT")
P = ParamSpec("P")


class Call(Generic[AnswerT]):
    """A method of an actor, with its arguments: `Call(EngineActor.drop, job, uids)`.

    A method of the base class stands for that of the actor's own class.
    """

    def __init__(
        self, method: Callable[Concatenate[Any, P], AnswerT], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        self.name = method.__name__
        self._args = args
        self._kwargs = kwargs

    def on(self, actor: object) -> AnswerT:
        """The answer of this actor."""
        answer: AnswerT = getattr(actor, self.name)(*self._args, **self._kwargs)
        return answer


@dataclass(frozen=True)
class Turn:
    """What came of some calls to an actor."""

    answer: Any = None
    """The answer to the last call. Images of outcomes travel separately (pictures.py)."""
    ran: Cost = field(default_factory=Cost)
    """All that the actor has counted since it was started."""
    nfe: int = 0
    """Evaluations since the actor's process began."""
    room: int = 0
    """Evaluations that its batches had room for, in the same time."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase since the actor was started."""
    calibration: Cost = field(default_factory=Cost)
    """What it has computed to find how to compute, since its process began."""
    notices: tuple[str, ...] = ()
    """What results should say of how it computes."""


@dataclass(frozen=True)
class Description:
    """An actor's engine, by the attributes of `Engine`."""

    grid: Grid
    reward_names: tuple[str, ...]
    keep: tuple[str, ...]
    draft_calls: int
    offers: frozenset[Need]
    price: Price
    batch_sizes: Mapping[str, int]
