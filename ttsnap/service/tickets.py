"""Requests on their way between the event loop of the web application and the thread that
searches."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ttsnap.core.outcome import Decoded
from ttsnap.core.results import Event, Result
from ttsnap.core.selection import BEST, Selection
from ttsnap.request.offer import ServingCatalog
from ttsnap.request.request import Prepared
from ttsnap.results.record import SearchRecord
from ttsnap.service.forms import Pictures
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.requests import Body, Generation, Video, notes_of, prepared_of

if TYPE_CHECKING:
    from torch import Tensor

PREVIEWS = 20
"""Previews of a job."""


@dataclass(frozen=True)
class Partial:
    """The best estimate so far."""

    index: int
    """From 0."""
    image: Tensor = field(repr=False)
    """(3, H, W) in [0, 1] on the CPU; of a video a few frames (F, 3, H, W)."""


@dataclass(frozen=True)
class Done:
    """A finished search."""

    result: Result
    record: SearchRecord
    warnings: tuple[str, ...] = ()
    """For the client."""


@dataclass(frozen=True)
class Passed:
    """A request in which nothing was found wrong. Its search begins."""


News: TypeAlias = Partial | Done | Passed | RequestError


@dataclass(eq=False)
class PendingRequest:
    """One request. The thread that searches sends news to the application's event loop: at last a
    Done or an error."""

    request: Prepared
    caller: str
    """The name of its key."""
    loop: asyncio.AbstractEventLoop
    partials: int = 0
    """Partial images to send."""
    notes: tuple[str, ...] = ()
    """How the search differs from what the client wanted."""
    seconds: float = math.inf
    """Time after which the search ends with its best image."""
    job: bool = False
    """Whether it outlives this process: it is begun anew, where another one ends early with its
    best image."""
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    """Set by the application, and read by the thread before each batch."""
    came: float = field(default_factory=time.monotonic)
    begun: float | None = None
    """When its search began, by the same clock."""
    nfe: float = 0
    """Evaluations of rows that have arrived."""
    share: float = 0.0
    """Of the budget or of the time, whichever is used up first: from 0 to 1."""

    def tell(self, news: News) -> None:
        """Called in the thread. Nothing happens where the application has ended."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.news.put_nowait, news)


class Progress:
    """Listens to a search: counts its ticket's evaluations, and sends partial images.

    The first partial image is sent as soon as there is one, the others evenly over the search: of
    three at most one in each third. Of one batch only the best is sent. A move's evaluations count
    as its rows arrive, since all of them are charged before any of them runs.
    """

    def __init__(
        self,
        ticket: PendingRequest,
        allowance: float,
        selection: Selection = BEST,
        safe: Callable[[Tensor], bool] = lambda image: True,
    ) -> None:
        """safe: whether a partial image may be shown."""
        self.ticket, self.selection, self.safe = ticket, selection, safe
        self.allowance = allowance
        """Evaluations that the budget affords."""
        self.sent = 0
        self.due = 0.0
        """The share of the search from which on the next one is sent."""
        self.arrived = 0.0
        self.best = -math.inf
        self.picture: Decoded | None = None
        """The best estimate, until it is sent."""
        self._under_way: dict[int, float] = {}
        """Evaluations of the rows that are under way, by their particles."""

    def __call__(self, event: Event) -> None:
        if event.kind == "move":  # the move before has arrived, and so have its rows without scores
            self._arrive(list(self._under_way))
            self._under_way = dict.fromkeys(event.uids, event.nfe / max(1, len(event.uids)))
        elif event.kind == "score":
            self._arrive(event.uids)
            scores = np.array([event.scores])
            value = float(self.selection.values(scores)[0])
            # An estimate may become an image that is refused.
            shown = bool(self.selection.admits(scores)[0]) and not (
                self.selection.gated and event.look
            )
            shown = shown and self.ticket.partials > 0 and event.picture is not None
            if shown and math.isfinite(value) and value > self.best:
                self.best, self.picture = value, event.picture
        elif event.kind == "tick":  # all scores of the batch are there
            self.ticket.share = min(
                1.0, max(self.arrived / self.allowance, event.seconds / self.ticket.seconds)
            )
            if self.picture is not None:
                self._send(self.picture)

    def _arrive(self, uids: Sequence[int]) -> None:
        self.arrived += sum(self._under_way.pop(uid, 0.0) for uid in uids)
        self.ticket.nfe = round(self.arrived)

    def _send(self, picture: Decoded) -> None:
        share, most = self.ticket.share, self.ticket.partials
        if self.sent < most and share >= self.due:
            image = (picture.small() if self.ticket.job else picture.fetch()).detach().float().cpu()
            self.picture = None
            if not self.safe(image):
                return
            self.ticket.tell(Partial(self.sent, image))
            self.sent += 1
            self.due = (math.floor(share * most) + 1) / most


@dataclass(frozen=True)
class RequestParser:
    """Makes tickets of what clients write."""

    offer: ServingCatalog
    limits: ServiceLimits

    def ticket(
        self, wanted: Body, caller: str, pictures: Pictures | None = None, *, job: bool = False
    ) -> PendingRequest:
        """A ticket for this event loop. RequestError for what is not offered here, and for more
        than is allowed."""
        limits = self.limits.of_jobs if job else self.limits
        limits = limits.of_videos if isinstance(wanted, Video) else limits
        search = prepared_of(wanted, self.offer, limits, pictures)
        partials = wanted.partial_images if isinstance(wanted, Generation) else 0
        notes, left_open = (
            notes_of(wanted, search, limits),
            "draft" not in wanted.options and not search.prompt.inputs,
        )
        if (
            left_open
            and self.offer.undrafted is not None
            and search.request.search == "seed-pruning"
        ):
            notes += (self.offer.undrafted,)
        return PendingRequest(
            search,
            caller,
            asyncio.get_running_loop(),
            PREVIEWS if job else partials,
            notes,
            job=job,
        )
