"""A request on its way between the web application's loop and the thread that searches."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ttsnap.core.outcome import Decoded
from ttsnap.core.results import Event, Result
from ttsnap.request.request import SearchRequest
from ttsnap.service.keys import Caller
from ttsnap.service.limits import RequestError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Partial:
    """The best estimate so far, (3, H, W) in [0, 1] on the CPU; index: from 0."""

    index: int
    image: Tensor = field(repr=False)


@dataclass(frozen=True)
class Done:
    """What was found, the settings that its images carry, and what the client should know of it."""

    result: Result
    settings: Mapping[str, object]
    warnings: tuple[str, ...] = ()


News: TypeAlias = Partial | Done | RequestError


class Ticket:
    """One request. The application waits for `news`, on its event loop; the thread tells them by `tell`, once it has
    ended with a Done or an error. `cancelled` is set by the application, and read by the thread before each batch.
    seconds: after which it ends with its best image; partials: images to send meanwhile; nfe: evaluations that it took
    so far, of rows that have arrived."""

    def __init__(
        self, asked: SearchRequest, caller: Caller, loop: asyncio.AbstractEventLoop, seconds: float, partials: int = 0
    ) -> None:
        self.asked, self.caller, self.cancelled = asked, caller, False
        self.seconds, self.partials = seconds, partials
        self.news: asyncio.Queue[News] = asyncio.Queue()
        self.came = time.monotonic()
        self.nfe = 0
        self._loop = loop

    def tell(self, news: News) -> None:
        """From the thread. Nobody hears it where the application has ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.news.put_nowait, news)


class Progress:
    """Listens to a search: counts its ticket's evaluations, and tells it of the best estimate so far, at most as often
    as was asked for. The first comes as soon as there is one, the others evenly over the search: of three at most one
    in each third, and of what one batch brought only the best.

    allowance: evaluations that the budget affords. A move's evaluations count as its rows arrive: they are charged all
    at once, before any of them runs.
    """

    def __init__(self, ticket: Ticket, allowance: float) -> None:
        self.ticket, self.most, self.allowance = ticket, ticket.partials, allowance
        self.told = 0
        self.due = 0.0
        """From which share of the search on the next one is told."""
        self.arrived = 0.0
        self.best = -math.inf
        self.picture: Decoded | None = None
        """The best estimate, where it was not told yet."""
        self._under_way: dict[int, float] = {}
        """Evaluations of the rows that are under way, by their particles."""

    def __call__(self, event: Event) -> None:
        if event.kind == "move":  # the one before has arrived, also its rows that nothing scored
            self._arrive(list(self._under_way))
            self._under_way = dict.fromkeys(event.uids, event.nfe / max(1, len(event.uids)))
        elif event.kind == "score":
            self._arrive(event.uids)
            value = sum(event.scores) / len(event.scores)
            if self.most and event.picture is not None and math.isfinite(value) and value > self.best:
                self.best, self.picture = value, event.picture
        elif event.kind == "tick" and self.picture is not None:  # all that the batch before brought is known
            self._tell(self.picture, event.seconds)

    def _arrive(self, uids: Sequence[int]) -> None:
        self.arrived += sum(self._under_way.pop(uid, 0.0) for uid in uids)
        self.ticket.nfe = round(self.arrived)

    def _tell(self, picture: Decoded, seconds: float) -> None:
        share = max(self.arrived / self.allowance, seconds / self.ticket.seconds)
        if self.told < self.most and share >= self.due:
            self.ticket.tell(Partial(self.told, picture.fetch().detach().float().cpu()))
            self.told, self.picture = self.told + 1, None
            self.due = (math.floor(share * self.most) + 1) / self.most
