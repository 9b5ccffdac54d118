"""The actors of a cluster as their driver sees them: what each was sent, what it answered, and that it may die.

ray_pool.py runs them on Ray; tests do without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ttsnap.cluster.messages import Admit, Command, Start, Tick, Turn
from ttsnap.core.cost import Cost
from ttsnap.core.protocols import EngineLost

TicketT = TypeVar("TicketT")
AHEAD = 2
"""Ticks that an actor is sent ahead, so that it works while the driver thinks."""
MOST_DEATHS = 3
"""Deaths in a row, without a turn between them, that end a search."""


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


@dataclass
class Flight(Generic[TicketT]):
    """Commands under way to an actor, or their answer on its way back. asked: whether somebody waits for it."""

    ticket: TicketT
    ticks: bool
    asked: bool


class ActorGroup(Generic[TicketT]):
    """hear: called with each answer. revived: called with the number of an actor that was restarted, to tell it what
    it must know; what was on its way to the one that died is lost."""

    def __init__(self, pool: Pool[TicketT], hear: Callable[[int, Turn], None], revived: Callable[[int], None]) -> None:
        self.pool, self.hear, self.revived = pool, hear, revived
        n = len(pool)
        self.flights: list[deque[Flight[TicketT]]] = [deque() for _ in range(n)]
        self.later: list[list[Command]] = [[] for _ in range(n)]
        self.deaths = [0] * n
        self.died = False
        """Whether any actor has died since `reset`."""
        self.last = [Turn() for _ in range(n)]
        """The last answer of each actor that lives."""
        self.gone = Cost()
        """What actors had counted that died."""
        self.gone_nfe, self.gone_room = 0, 0
        self._asked: dict[int, tuple[Command, ...]] = {}
        self._answers: dict[int, Turn] = {}
        self._raised: dict[int, Exception] = {}

    def __len__(self) -> int:
        return len(self.flights)

    def reset(self) -> None:
        """Forget what is under way; answers to it are not heard."""
        for flights, later in zip(self.flights, self.later, strict=True):
            flights.clear()
            later.clear()
        self._asked.clear()
        self.died, self.gone = False, Cost()

    def post(self, actor: int, *commands: Command, asked: bool = False) -> None:
        """Send commands now, after all that was to be sent later."""
        ticket = self.pool.send(actor, (*self.later[actor], *commands))
        self.later[actor].clear()
        self.flights[actor].append(Flight(ticket, any(isinstance(c, Tick) for c in commands), asked))

    def tick(self, actor: int) -> None:
        """Have an actor go on, unless it has enough to do already."""
        if sum(flight.ticks for flight in self.flights[actor]) < AHEAD:
            self.post(actor, Tick())

    def ask(self, actors: Iterable[int], *commands: Command) -> list[Turn]:
        """The answers of these actors to these commands. Where some raise, so does this, once all have answered."""
        self._asked, self._answers, self._raised = dict.fromkeys(actors, commands), {}, {}
        asked = list(self._asked)
        for actor in asked:
            self.post(actor, *commands, asked=True)
        while len(self._answers) < len(asked):
            self.listen(1.0)
        for actor in asked:
            if (error := self._raised.pop(actor, None)) is not None:
                raise error
        return [self._answers[actor] for actor in asked]

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return any(self.flights)

    def listen(self, seconds: float) -> None:
        """Hear what is ready; wait so long for a first answer. EngineLost where an actor keeps dying."""
        heads = {actor: flights[0].ticket for actor, flights in enumerate(self.flights) if flights}
        while heads:
            ready = self.pool.ready(list(heads.values()), seconds)
            if not ready:
                return
            for actor in [actor for actor, ticket in heads.items() if ticket in ready]:
                self._hear(actor)
            # The next answers of those that were heard may be there as well.
            heads = {actor: self.flights[actor][0].ticket for actor in heads if self.flights[actor]
                     and heads[actor] in ready}  # fmt: skip
            seconds = 0.0

    def _hear(self, actor: int) -> None:
        flight = self.flights[actor].popleft()
        try:
            turn = self.pool.answer(flight.ticket)
        except ActorDied as death:
            self._revive(actor, death)
            return
        except Exception as error:
            if not flight.asked:
                raise
            self._raised[actor], self._answers[actor] = error, Turn()
            self._asked.pop(actor, None)
            return
        self.deaths[actor] = 0
        self.last[actor] = turn
        if flight.asked:
            self._answers[actor] = turn
            self._asked.pop(actor, None)
        self.hear(actor, turn)

    def _revive(self, actor: int, death: ActorDied) -> None:
        self.deaths[actor] += 1
        self.died = True
        if self.deaths[actor] >= MOST_DEATHS:
            raise EngineLost(f"actor {actor} of {len(self)} died {MOST_DEATHS} times in a row ({death}); the search "
                             "ended with what was found before") from death  # fmt: skip
        self.gone += self.last[actor].ran
        self.gone_nfe += self.last[actor].nfe
        self.gone_room += self.last[actor].room
        self.last[actor] = Turn()
        self.flights[actor].clear()
        self.later[actor].clear()
        self.pool.restart(actor)
        self.revived(actor)
        if actor in self._asked:
            again = [c for c in self._asked[actor] if not isinstance(c, Admit | Start)]  # it was told at its start
            self.post(actor, *again, asked=True)

    @property
    def ran(self) -> Cost:
        """All that was counted by all actors, dead ones included, since they were started."""
        return self.gone.plus(*(turn.ran for turn in self.last))
