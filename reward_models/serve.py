"""A server for any reward, by the protocol of http.py: FastAPI on uvicorn.

It has no authentication: it is for trusted networks, or behind a proxy. Memory holds at most HELD
requests of Limits.max_bytes. One request at a time is decoded, BATCH_PIXELS at a time, and scored.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Self

import h11
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ttsnap.core.protocols import Reward
from ttsnap.files.reading import PIXELS, opened_picture, picture_pixels
from ttsnap.files.settings import Count, Positive, Settings
from ttsnap.rewards.reward_model import adapted
from ttsnap.rewards.scoring import Shown, score_in_parts

logger = logging.getLogger(__name__)
HELD = 4
GRACE = 5
BACKLOG = 512
"""Requests in memory at a time; seconds for running requests at the end; connections that wait to
be accepted."""
BATCH_PIXELS = 4096 * 4096
"""Most pixels decoded at a time, and so most of one image. In float32 that is 201 MB."""
PROMPT_LENGTH = 20_000
"""Most characters of a prompt."""


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
    """For the body of a request to arrive."""
    connections: Count = 128
    """At a time; more are answered with status 503."""


class Asked(BaseModel):
    """The body of a request: N prompts, N PNGs in base64, and N noise levels."""

    model_config = ConfigDict(
        extra="forbid", strict=True, val_json_bytes="base64", allow_inf_nan=False
    )
    prompts: list[Annotated[str, Field(max_length=PROMPT_LENGTH)]] = Field(fail_fast=True)
    images: list[bytes] = Field(fail_fast=True)
    levels: list[float] = Field([], fail_fast=True)
    """Zeros where they are left out."""


class Connection(H11Protocol):
    """Ends where no whole head of a request comes within `timeout_keep_alive`, also where it
    trickles."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """As there, where the first byte ends the time."""
        self.conn.receive_data(data)
        self.handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._unset_keepalive_if_required()


class SocketServer:
    """An application at `url`: `run` until a signal, or in a thread as a context manager."""

    def __init__(
        self,
        app: ASGIApp,
        address: tuple[str, int],
        *,
        connections: int,
        server: Callable[[uvicorn.Config], uvicorn.Server] = uvicorn.Server,
        **options: Any,
    ) -> None:
        """address: host and port, of which 0 takes any free one. connections: as of Limits.
        options: of uvicorn.

        OSError or OverflowError where it cannot listen.
        """
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            # The application logs failures; malformed requests are their senders' business.
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            backlog=BACKLOG,
            limit_concurrency=connections + 1,  # uvicorn counts the one that asks
            **options,
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


class RewardServer(SocketServer):
    """Serves one reward. Running requests get seconds to end; a running call of the reward is
    awaited.

    device: of the images that the reward gets.
    """

    def __init__(
        self,
        reward: Reward,
        host: str = "127.0.0.1",
        port: int = 8765,
        limits: Limits | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        limits = limits or Limits()
        app = make_app(reward, limits, device)
        super().__init__(
            app, (host, port), connections=limits.connections, timeout_graceful_shutdown=GRACE
        )


def make_app(reward: Reward, limits: Limits, device: torch.device | str = "cpu") -> FastAPI:
    """The web application: GET describes the reward, POST scores images. Errors are JSON with a
    sentence."""
    Shown().check([adapted(reward)])
    app = FastAPI(openapi_url=None)
    room = asyncio.Semaphore(HELD)
    turn = asyncio.Lock()
    app.add_middleware(BodyLimits, most=lambda path: limits.max_bytes, seconds=limits.seconds)

    @app.get("/{path:path}")
    async def describe() -> dict[str, str | int]:
        return {"name": reward.name, "max_images": limits.max_images}

    @app.post("/{path:path}")
    async def answer(request: Request) -> Response:
        try:
            async with room:
                body = await request.body()
                async with turn:
                    if await request.is_disconnected():  # its client did not wait for its turn
                        return Response()
                    asked = await asyncio.to_thread(parse, body, limits)
                    del body
                    scores = await asyncio.to_thread(score, reward, asked, limits, device)
        except asyncio.CancelledError:
            return JSONResponse({"error": "the server is being stopped"}, 503)
        logger.info("%s: %d images scored", request.client, len(scores))
        return JSONResponse({"scores": scores})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        logger.info("%s: refused: %s", request.client, error.detail)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        logger.error("%s: a request failed", request.client, exc_info=error)
        return JSONResponse({"error": "the server failed; its log says why"}, 500)

    return app


class BodyLimits:
    """An application whose requests come within limits: of bytes, of seconds until a body is whole,
    and of the bytes of all bodies that are read. HTTPException where they do not.

    What arrived counts until the request is answered, or the application calls `state.let_go`.
    """

    def __init__(
        self, app: ASGIApp, most: Callable[[str], int], seconds: float, held: float = math.inf
    ) -> None:
        """most: bytes of a request to a path. held: bytes of all together."""
        self.app = app
        self.most = most
        self.seconds = seconds
        self.held = held
        self.arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.most(scope["path"])
        size = int(Headers(scope=scope).get("content-length", 0))
        end = asyncio.get_running_loop().time() + self.seconds
        read = 0
        begun = False
        whole = False

        async def within() -> Message:
            nonlocal read, begun, whole
            if whole:
                return await receive()  # of a client that goes away
            if size > most:
                raise too_large(size, most)
            begun = True
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:  # a slow client is not waited for any longer
                late = f"the request was not whole after {self.seconds:g} s"
                raise HTTPException(408, late) from None
            part = len(message.get("body", b""))
            whole = not message.get("more_body", False)
            read = read + part
            self.arriving = self.arriving + part
            if read > most:
                raise too_large(read, most)
            if self.arriving > self.held:
                busy = "others send too much at this moment; try again later"
                raise HTTPException(503, busy, {"Retry-After": "5"})
            return message

        def let_go() -> None:
            nonlocal read
            read, self.arriving = 0, self.arriving - read

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and begun and not whole:
                # the rest may drip for ever
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        scope.setdefault("state", {})["let_go"] = let_go
        try:
            await self.app(scope, within, closing)
        finally:
            let_go()


def too_large(size: int, most: int) -> HTTPException:
    return HTTPException(413, f"a request of {size} bytes or more; at most {most}")


def parse(body: bytes, limits: Limits) -> Asked:
    """The request in a body, its images not decoded yet. HTTPException for what is malformed or
    beyond the limits."""
    most = limits.max_images * PROMPT_LENGTH
    # counted before values are made, which take memory
    if sum(map(body.count, (b"[", b"{", b",", b":"))) > most:
        raise HTTPException(413, f"a request of more than {most:,} brackets, commas and colons")
    try:
        asked = Asked.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        said = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        status = 413 if first["type"] == "string_too_long" else 400
        raise HTTPException(status, f"cannot read the request: {said}") from None
    asked.levels = asked.levels or [0.0] * len(asked.images)
    if not len(asked.prompts) == len(asked.images) == len(asked.levels):
        lengths = f"{len(asked.prompts)}, {len(asked.levels)} and {len(asked.images)}"
        raise HTTPException(
            400, f"prompts, levels and images must be lists of one length, got {lengths}"
        )
    if len(asked.images) > limits.max_images:
        raise HTTPException(
            413, f"{len(asked.images)} images in one request; at most {limits.max_images}"
        )
    return asked


def score(
    reward: Reward, asked: Asked, limits: Limits, device: torch.device | str = "cpu"
) -> list[float | None]:
    """Scores of the images, on this device; None where one failed.

    HTTPException for images that are damaged or too large, and where the reward fails.
    """
    sizes = [png_size(data) for data in asked.images]
    most = max((w * h for w, h in sizes), default=0)
    total = sum(w * h for w, h in sizes)
    if most > BATCH_PIXELS or total > limits.max_pixels:
        limit = f"at most {BATCH_PIXELS:,} in one and {limits.max_pixels:,} in a request"
        raise HTTPException(413, f"an image of {most:,} pixels, and {total:,} in all; {limit}")
    scores = np.full(len(sizes), np.nan)
    levels = torch.tensor(asked.levels)
    for rows in batches(sizes):
        width, height = sizes[rows[0]]
        images = torch.empty(len(rows), 3, height, width)
        for image, row in zip(images, rows, strict=True):
            with no_png():
                image.copy_(
                    torch.from_numpy(picture_pixels(asked.images[row], "it")).permute(2, 0, 1)
                )
        images = images.to(device).div_(255)
        prompts = [asked.prompts[row] for row in rows]
        scores[rows], reason = score_in_parts(
            reward, images, prompts, levels[rows].to(device), reward.name
        )
        if reason is not None:  # it may hold addresses and paths of this machine
            logger.warning("%s", reason)
            raise HTTPException(500, "the reward failed; the server's log says why")
    return [None if np.isnan(value) else float(value) for value in scores]


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a PNG, without decoding. HTTPException for anything
    else."""
    with no_png(), opened_picture(data, "it", ("PNG",), 2 * PIXELS) as picture:
        return picture.size


@contextmanager
def no_png() -> Iterator[None]:
    """HTTPException in the place of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(400, f"an image is not a PNG in base64: {error}") from None


def batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Rows of equal size, at most BATCH_PIXELS in each batch."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, size in enumerate(sizes):
        by_size.setdefault(size, []).append(row)
    for (width, height), rows in by_size.items():
        n = max(1, BATCH_PIXELS // (width * height))
        yield from (rows[i : i + n] for i in range(0, len(rows), n))
