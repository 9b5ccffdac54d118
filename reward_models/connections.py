"""Servers on a socket: uvicorn with limits on connections, and bodies of requests, read within limits."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Self

import h11
import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ttsnap.files.reading import parse_json
from ttsnap.files.settings import Count, Json, Positive, Settings

BACKLOG = 512
"""Connections that wait to be accepted."""
LEAST = 2**19
"""Bytes of a long reply that a client must read within Limits.seconds."""
BATCH_PIXELS = 4096 * 4096
"""Most pixels decoded at a time, and so most of one image. In float32 that is 201 MB."""


@dataclass(frozen=True)
class Limits(Settings):
    """What a server accepts. ValueError for limits that are not positive."""

    max_images: Count = 64
    """Of one request."""
    max_bytes: Count = 256 * 2**20
    """Of one request."""
    max_pixels: Count = 4 * BATCH_PIXELS
    """Of all images of a request together; one image has at most BATCH_PIXELS."""
    seconds: Positive = 60.0
    """From the connection to the head of a request, and from there to its end."""
    connections: Count = 128
    """At a time; more are answered with status 503."""


class RefusedError(Exception):
    """A request that is answered with an error: an HTTP status and a sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guarded(H11Protocol):
    """One of Limits.connections, with Limits.seconds for the head of each request.

    The connection is aborted where its client reads a reply slower than LEAST bytes in Limits.seconds: such a client
    would hold its place and the reply for as long as it likes.
    """

    limits = Limits()
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=0)  # so that writing is paused while anything waits to be read
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"{self.limits.connections} connections are open, the most that are served; try again")
        self._watch()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._expect(0)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._expect(0)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, f"{msg} Content-Length must be one whole number, and lines must be as HTTP/1.1 has them.")

    def error_of(self, status: int, sentence: str) -> dict[str, Json]:
        """The JSON of an error, in the shape of this server."""
        return {"error": sentence}

    def _expect(self, unread: int) -> None:
        """Check later whether less than `unread` bytes are unread; 0 ends the checks."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_later(self.limits.seconds, self._look, unread) if unread else None

    def _look(self, before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if before - unread < LEAST:
            self.transport.abort()
        else:
            self._expect(unread)

    def _watch(self) -> None:
        """Start the deadline while a request's head is awaited, and stop it while a request is answered."""
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if waiting and self._deadline is None:
            late = partial(self._refuse, 408, f"no whole request came within {self.limits.seconds:g} s")
            self._deadline = self.loop.call_later(self.limits.seconds, late)

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer with an error and close the connection; only close it where an answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = json.dumps(self.error_of(status, sentence)).encode()
            fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            events: tuple[Any, ...] = (
                h11.Response(status_code=status, headers=list(fields.items()), reason=HTTPStatus(status).phrase),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


class SocketServer:
    """An application at `url`: `run` until a signal, or in a thread as a context manager."""

    def __init__(
        self,
        app: ASGIApp,
        address: tuple[str, int],
        limits: Limits,
        *,
        grace: int,
        connection: type[Guarded] = Guarded,
        server: Callable[[uvicorn.Config], uvicorn.Server] = uvicorn.Server,
        idle: int = 5,
    ) -> None:
        """address: host and port, of which 0 takes any free one. grace: seconds for running requests at the end. idle:
        seconds for which a connection without a request stays open. OSError or OverflowError where it cannot listen."""
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        config = uvicorn.Config(
            app,
            http=type("Limited", (connection,), {"limits": limits}),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",  # The application logs failures; malformed requests are their senders' business.
            access_log=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=idle,
            timeout_graceful_shutdown=grace,
        )
        self._server = server(config)
        self._thread = threading.Thread(target=self.run, name=type(self).__name__, daemon=True)

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        with suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.handle_exit(signal.SIGTERM, None)
        self._thread.join()


async def parts_of(request: Request, most: int, seconds: float) -> AsyncIterator[bytes]:
    """The body of a request as it arrives. RefusedError for more than `most` bytes, or where it takes longer."""
    size, read, stream = int(request.headers.get("content-length", 0)), 0, request.stream()
    end = asyncio.get_running_loop().time() + seconds
    while True:
        if max(size, read) > most:
            raise RefusedError(413, f"a request of {max(size, read)} bytes or more; at most {most}")
        try:
            async with asyncio.timeout_at(end):
                part = await anext(stream, None)
        except TimeoutError:
            raise RefusedError(408, f"the request was not whole after {seconds:g} s") from None
        if part is None:
            return
        read += len(part)
        yield part


@dataclass(frozen=True)
class Pieces:
    """The texts of a JSON body: pictures, which are taken out before it is parsed, and others."""

    picture: re.Pattern[bytes]
    """A picture's text with its quotes; its first group is what stands between them."""
    kind: str
    """What a picture is, for messages."""
    most: int
    """Texts (keys included) and pictures of a body."""
    text: int
    """Bytes of one text."""
    beside: int
    """Bytes apart from texts and pictures."""

    def parted(self, body: bytes | bytearray) -> tuple[bytes, dict[str, bytes]]:
        """A body with a short name in place of each picture, and the pictures by these names. RefusedError for too many
        texts or bytes.

        The rest is kilobytes, so parsing takes little memory: Python needs 35 times the bytes of nested lists.
        """
        text = re.compile(rb'"(?:[^"\\]|\\.){0,%d}+"' % self.text, re.DOTALL)
        parts, pictures, end, beside, count = list[bytes | bytearray](), dict[str, bytes](), 0, 0, 0
        while (start := body.find(b'"', end)) >= 0:
            picture = self.picture.match(body, start)
            if (found := picture or text.match(body, start)) is None:
                said = f"a text that has no end, or more than {self.text:,} bytes and is not {self.kind}"
                raise RefusedError(413, said)
            name = f"image {len(pictures)}"
            parts += body[end:start], f'"{name}"'.encode() if picture else found[0]
            pictures |= {name: self._unescaped(picture[1])} if picture else {}
            beside, count, end = beside + start - end, count + 1, found.end()
            _check("texts and images", count, self.most)
            _check("bytes beside texts and images", beside, self.beside)
        _check("bytes beside texts and images", beside + len(body) - end, self.beside)
        return b"".join([*parts, body[end:]]), pictures

    def _unescaped(self, picture: bytes) -> bytes:
        """Without JSON's escapes, by which some languages write / and +. RefusedError for other text."""
        if b"\\" not in picture:
            return picture
        try:
            return str(parse_json(b'"%b"' % picture, "an image")).encode("ascii")
        except ValueError:
            raise RefusedError(400, f"an image is not {self.kind}") from None


def _check(what: str, count: int, most: int) -> None:
    if count > most:
        raise RefusedError(413, f"a request of more than {most:,} {what}")
