"""Requests on their way between the event loop of the web application and the thread that searches,
and the replies of HTTP that their results become: OpenAI's shapes, and ours in addition."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from ttsnap.core.outcome import Decoded
from ttsnap.core.results import Event, Result
from ttsnap.core.selection import BEST, Selection
from ttsnap.files.settings import Json
from ttsnap.request.offer import ServingCatalog
from ttsnap.request.request import Prepared
from ttsnap.results.media import QUALITY, frames_of, png_info, save_video, still, to_uint8
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
        self.ticket = ticket
        self.selection = selection
        self.safe = safe
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
                self.best = value
                self.picture = event.picture
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
        share = self.ticket.share
        most = self.ticket.partials
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
        notes = notes_of(wanted, search, limits)
        left_open = "draft" not in wanted.options and not search.prompt.inputs
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


# --- replies --------------------------------------------------------------------------------------


def file_of(pixels: Tensor, wanted: Generation, record: SearchRecord | None = None) -> bytes:
    """(3, H, W) in [0, 1] -> a file of the requested format. A PNG carries the record."""
    picture = Image.fromarray(to_uint8(pixels))
    file = io.BytesIO()
    if wanted.output_format == "png":
        if record is not None:
            record.label(picture)
        picture.save(file, format="PNG", pnginfo=png_info(picture))
    else:
        picture.save(file, format=wanted.output_format.upper(), quality=wanted.output_compression)
    return file.getvalue()


def files_of(done: Done, wanted: Generation | Video, offer: ServingCatalog) -> list[bytes]:
    """A file for each kept image or video, best first, which carries what made it where its format
    can."""
    files = []
    for rank, candidate in enumerate(done.result.images):
        record = done.record.of(done.result, rank)
        if isinstance(wanted, Generation):
            files.append(file_of(candidate.pixels, wanted, record))
            continue
        frames = frames_of(candidate.pixels)
        record.label(frames[0])
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"video.{wanted.output_format}"
            save_video(path, frames, wanted.rate(offer))
            files.append(path.read_bytes())
    return files


def thumbnail_of(pixels: Tensor) -> bytes:
    """(3, H, W), or a video (T, 3, H, W), in [0, 1] -> a WebP picture, of a video its middle
    frame."""
    frame = pixels if pixels.ndim == 3 else pixels[len(pixels) // 2]
    file = io.BytesIO()
    still(frame).save(file, format="WEBP", quality=QUALITY)
    return file.getvalue()


def usage_of(result: Result) -> dict[str, Json]:
    """The ledger. Tokens, which OpenAI's clients read, are 0: nothing here is counted in them."""
    spent = result.spent
    return {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        **spent.counts(),
        "budget": spent.budget,
        "seconds": spent.seconds,
        "seeds": spent.seeds,
        "finished": spent.finished,
    }


def response_fields(done: Done) -> dict[str, Any]:
    """What a search found, but for its images: of each its scores, which are null where they are no
    numbers; and how many of the finished images have each item of a checklist."""
    data = [candidate.to_json() for candidate in done.result.images]
    height, width = done.result.images[0].pixels.shape[-2:]
    return {
        "size": f"{width}x{height}",
        "data": data,
        "usage": usage_of(done.result),
        "warnings": list(done.warnings),
        **({"answers": done.result.answers} if done.result.asked else {}),
    }


def reply_of(
    told: Mapping[str, Any], files: Sequence[bytes], wanted: Generation
) -> dict[str, Json]:
    """The whole reply to a request for images without a stream: what was told of its search, with
    the images."""
    data = [
        {**_image(file, wanted), **each} for file, each in zip(files, told["data"], strict=True)
    ]
    return {"created": int(time.time()), **_shape(told["size"], wanted), **told, "data": data}


def partial_event(partial: Partial, wanted: Generation) -> bytes:
    """The event of a partial image."""
    height, width = partial.image.shape[-2:]
    image = {**_image(file_of(partial.image, wanted), wanted), "partial_image_index": partial.index}
    return _event_of("partial_image", f"{width}x{height}", wanted, image)


def completed_events(done: Done, wanted: Generation, offer: ServingCatalog) -> list[bytes]:
    """An event for each kept image, best first."""
    told = response_fields(done)
    more: dict[str, Any] = {
        name: told[name] for name in ("usage", "warnings", "answers") if name in told
    }
    images = zip(files_of(done, wanted, offer), told["data"], strict=True)
    return [
        _event_of(
            "completed",
            told["size"],
            wanted,
            {**_image(file, wanted), **each, "rank": rank, **more},
        )
        for rank, (file, each) in enumerate(images, 1)
    ]


def event(name: str, data: dict[str, Json]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def _event_of(name: str, size: str, wanted: Generation, image: dict[str, Json]) -> bytes:
    return event(
        f"{wanted.kind}.{name}", {"created_at": int(time.time()), **_shape(size, wanted), **image}
    )


def _shape(size: str, wanted: Generation) -> dict[str, Json]:
    return {
        "background": "opaque",
        "output_format": wanted.output_format,
        "quality": wanted.effort,
        "size": size,
    }


def _image(file: bytes, wanted: Generation) -> dict[str, Json]:
    data = base64.b64encode(file).decode()
    if wanted.response_format == "url" and not wanted.stream:  # OpenAI's events have no addresses
        return {"url": f"data:image/{wanted.output_format};base64,{data}"}
    return {"b64_json": data}
