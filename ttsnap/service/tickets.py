"""A request on its way between the web application's loop and the thread that searches."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ttsnap.core.pictures import Decoded
from ttsnap.core.results import Event, Result
from ttsnap.service.errors import RequestError
from ttsnap.service.keys import Caller
from ttsnap.service.requests import Asked

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
    ended with a Done or an error. `cancelled` is set by the application, and read by the thread before each batch."""

    def __init__(self, asked: Asked, caller: Caller, loop: asyncio.AbstractEventLoop) -> None:
        self.asked, self.caller, self.cancelled = asked, caller, False
        self.news: asyncio.Queue[News] = asyncio.Queue()
        self.came = time.monotonic()
        self._loop = loop

    def tell(self, news: News) -> None:
        """From the thread. Nobody hears it where the application has ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.news.put_nowait, news)


class PartialImages:
    """Listens to a search and tells its ticket of the best estimate so far, at most as often as was asked for: the
    first as soon as there is one, the others as the budget's evaluations are used, evenly."""

    def __init__(self, ticket: Ticket, nfe: float) -> None:
        self.ticket, self.most, self.nfe = ticket, ticket.asked.partial_images, nfe
        self.told, self.charged = 0, 0
        self.best = -math.inf
        self.picture: Decoded | None = None
        """The best estimate, where it was not told yet."""

    def __call__(self, event: Event) -> None:
        if event.kind == "move":
            self.charged += event.nfe
        if event.kind != "score" or event.picture is None or self.told == self.most:
            return
        value = sum(event.scores) / len(event.scores)
        if math.isfinite(value) and value > self.best:
            self.best, self.picture = value, event.picture
        if self.picture is not None and self.charged >= self.nfe * self.told / self.most:
            self.ticket.tell(Partial(self.told, self.picture.fetch().detach().float().cpu()))
            self.told, self.picture = self.told + 1, None
