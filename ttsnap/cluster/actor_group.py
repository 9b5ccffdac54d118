"""The actors of a cluster, from the driver: calls under way, answers, and actors that die.

ray_pool.py runs them on Ray; tests do without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from ttsnap.cluster.messages import AnswerT, Call, Turn
from ttsnap.core.cost import Cost
from ttsnap.core.protocols import EngineLost

AHEAD = 2
"""Calls of `post_ahead` that an actor is sent, so that it works while the driver thinks."""
MOST_DEATHS = 3
"""Deaths in a row, without a turn between them, that end a search."""
PendingTurn: TypeAlias = Any
"""What a pool tells the answers under way by."""


class ActorDied(Exception):  # noqa: N818 (an event that is handled, and no error of the user)
    """The process of an actor is gone, with all that it had."""


class Pool(Protocol):
    """Actors by number. An actor carries out what it is sent in order, and no two things at
    once."""

    def __len__(self) -> int:
        """How many actors there are."""

    def send(self, actor: int, calls: Sequence[Call[Any]]) -> PendingTurn:
        """Have an actor carry out these calls; returns at once."""

    def ready(self, tickets: Sequence[PendingTurn], seconds: float) -> list[PendingTurn]:
        """Those of these tickets that have an answer; waits so long for one."""

    def answer(self, ticket: PendingTurn) -> Turn:
        """What came of the calls. Raises what they raised, and ActorDied where the actor is
        gone."""

    def restart(self, actor: int) -> None:
        """A new actor in place of one that died."""

    def close(self) -> None:
        """The actors are not needed any more."""


@dataclass
class Flight:
    """A call under way to an actor, or its answer on the way back."""

    ticket: PendingTurn
    call: Call[Any]
    then: Callable[[Any], None] | None
    """Called with the answer."""
    failed: Callable[[Exception], None] | None
    """Called with what the call raised. None: it is raised by `listen`, and the call is not sent
    again."""
    ahead: bool


class ActorGroup:
    """The actors of a pool, by number. Calls under way to an actor are lost when it dies, but for
    those of `ask`."""

    def __init__(self, pool: Pool, revived: Callable[[int], None]) -> None:
        """revived: called with the number of an actor that was restarted, to give it the state that
        it needs."""
        self.pool = pool
        self.revived = revived
        n = len(pool)
        self.flights: list[deque[Flight]] = [deque() for _ in range(n)]
        self._postponed: list[list[Call[Any]]] = [[] for _ in range(n)]
        self.deaths = [0] * n
        self.last = [Turn() for _ in range(n)]
        """The last answer of each actor that lives."""
        self.gone = Cost()
        """What actors had counted that died."""
        self.gone_nfe = 0
        self.gone_room = 0
        self.gone_calibration = Cost()

    def __len__(self) -> int:
        return len(self.flights)

    def reset(self) -> None:
        """Forget what is under way; answers to it are not heard."""
        for flights in self.flights:
            flights.clear()
        for postponed in self._postponed:
            postponed.clear()
        self.gone = Cost()

    def postpone(self, actors: Iterable[int], call: Call[None]) -> None:
        """Send a call to each of these actors with the next one that is posted there."""
        for actor in actors:
            self._postponed[actor].append(call)

    def post(
        self,
        actor: int,
        call: Call[AnswerT],
        then: Callable[[AnswerT], None] | None = None,
        *,
        failed: Callable[[Exception], None] | None = None,
        ahead: bool = False,
    ) -> None:
        """Send a call now, after all that was postponed. The keywords are those of `Flight`."""
        ticket = self.pool.send(actor, (*self._postponed[actor], call))
        self._postponed[actor].clear()
        self.flights[actor].append(Flight(ticket, call, then, failed, ahead))

    def post_ahead(
        self,
        actor: int,
        call: Call[AnswerT],
        then: Callable[[AnswerT], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Send a call, unless the actor has enough of these to do already."""
        if sum(flight.ahead for flight in self.flights[actor]) < AHEAD:
            self.post(actor, call, then, failed=failed, ahead=True)

    def ask(self, actors: Iterable[int], call: Call[AnswerT]) -> list[AnswerT]:
        """The answers of these actors. Where some raise, so does this, once all have answered."""
        answers: dict[int, AnswerT] = {}
        errors: dict[int, Exception] = {}
        numbers = list(actors)
        for actor in numbers:
            keep = partial(answers.__setitem__, actor)
            fail = partial(errors.__setitem__, actor)
            self.post(actor, call, keep, failed=fail)
        while len(answers) + len(errors) < len(numbers):
            self.listen(1.0)
        if errors:
            raise errors[min(errors)]
        return [answers[actor] for actor in numbers]

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return any(self.flights)

    def listen(self, seconds: float) -> None:
        """Hear what is ready; wait so long for a first answer. EngineLost where an actor keeps
        dying."""
        heads = {actor: flights[0].ticket for actor, flights in enumerate(self.flights) if flights}
        while heads:
            ready = self.pool.ready(list(heads.values()), seconds)
            if not ready:
                return
            for actor in [actor for actor, ticket in heads.items() if ticket in ready]:
                self._hear(actor)
            # The next answers of those that were heard may be there as well.
            heads = {
                actor: self.flights[actor][0].ticket
                for actor in heads
                if self.flights[actor] and heads[actor] in ready
            }
            seconds = 0.0

    def _hear(self, actor: int) -> None:
        flight = self.flights[actor].popleft()
        try:
            turn = self.pool.answer(flight.ticket)
        except ActorDied as death:
            self._revive(actor, flight, death)
            return
        except Exception as error:
            if flight.failed is None:
                raise
            flight.failed(error)
            return
        self.deaths[actor] = 0
        self.last[actor] = turn
        if flight.then is not None:
            flight.then(turn.answer)

    def _revive(self, actor: int, flight: Flight, death: ActorDied) -> None:
        self.deaths[actor] += 1
        if self.deaths[actor] >= MOST_DEATHS:
            raise EngineLost(
                f"actor {actor} of {len(self)} died {MOST_DEATHS} times in a row ({death}); the"
                " search ended with what was found before"
            ) from death
        lost = [flight, *self.flights[actor]]
        self.flights[actor].clear()
        self._postponed[actor].clear()
        self.gone += self.last[actor].ran
        self.gone_nfe += self.last[actor].nfe
        self.gone_room += self.last[actor].room
        self.gone_calibration += self.last[actor].calibration
        self.last[actor] = Turn()
        self.pool.restart(actor)
        self.revived(actor)
        for flight in lost:
            if flight.failed is not None and not flight.ahead:  # somebody waits for the answer
                self.post(actor, flight.call, flight.then, failed=flight.failed)

    @property
    def ran(self) -> Cost:
        """All that was counted by all actors, dead ones included, since they were started."""
        return self.gone.plus(*(turn.ran for turn in self.last))
