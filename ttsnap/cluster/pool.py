"""What a ClusterEngine asks of that which runs its actors. ray_pool.py answers with Ray; tests do without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from ttsnap.cluster.messages import Command, Turn

TicketT = TypeVar("TicketT")


class ActorDied(Exception):  # noqa: N818 (an event that is handled, and no error of the user)
    """The process of an actor is gone, with all that it had."""


class Pool(Protocol, Generic[TicketT]):
    """Actors by number. An actor carries out what it is sent in order, and no two things at once."""

    def __len__(self) -> int:
        """How many there are."""

    def send(self, actor: int, commands: Sequence[Command]) -> TicketT:
        """Have an actor carry these out; returns at once."""

    def ready(self, tickets: Sequence[TicketT], seconds: float) -> list[TicketT]:
        """Those of these tickets that have an answer; waits so long for one."""

    def answer(self, ticket: TicketT) -> Turn:
        """What came of it. Raises what the commands raised, and ActorDied where the actor is gone."""

    def restart(self, actor: int) -> None:
        """A new actor in place of one that died."""

    def close(self) -> None:
        """The actors are not needed any more."""
