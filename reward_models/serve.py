"""A server for any reward, by the protocol of http.py: Starlette on uvicorn.

It has no authentication, so it is for trusted networks. Nothing that a client sends makes it grow or hang: memory holds
at most HELD requests of Limits.max_bytes, and the others wait unread. One request at a time is parsed, decoded in
batches of request.BATCH_PIXELS, and scored.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from ttsnap.reward_models.request import Limits, RefusedError, parse, score
from uvicorn.protocols.http.h11_impl import H11Protocol

from ttsnap.core.protocols import Reward
from ttsnap.files.settings import Json
from ttsnap.rewards.reward_model import adapted
from ttsnap.rewards.scoring import Shown

logger = logging.getLogger(__name__)
HELD, BACKLOG, GRACE = 4, 512, 5


class RewardServer:
    """Serves one reward at `url`: `run` until Ctrl-C, or in a thread as a context manager.

    port: 0 for any free one; device: of the images that the reward gets. OSError or OverflowError where it cannot
    listen.
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
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        config = uvicorn.Config(
            make_app(reward, limits, device),
            http=type("Guarded", (Guarded,), {"limits": limits}),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",  # Failures are logged here, and malformed requests are their senders' business.
            access_log=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.run, name="reward server", daemon=True)

    def run(self) -> None:
        """Serve until Ctrl-C. Running requests get GRACE seconds to end; a running call of the reward is awaited."""
        with suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])

    def __enter__(self) -> RewardServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def make_app(reward: Reward, limits: Limits, device: torch.device | str = "cpu") -> Starlette:
    """The web application: GET describes the reward, POST scores images. Errors are JSON with a sentence."""
    Shown().check([adapted(reward)])
    room, turn = asyncio.Semaphore(HELD), asyncio.Lock()

    async def describe(request: Request) -> Response:
        return JSONResponse({"name": reward.name, "max_images": limits.max_images})

    async def answer(request: Request) -> Response:
        try:
            async with room:
                body = await _body(request, limits)
                async with turn:
                    if await request.is_disconnected():  # its client did not wait for its turn
                        return Response()
                    parsed = await asyncio.to_thread(parse, body, limits)
                    del body
                    scores = await asyncio.to_thread(score, reward, parsed, device)
        except asyncio.CancelledError:
            return _error(503, "the server is being stopped")
        logger.info("%s: %d images scored", request.client, len(scores))
        return JSONResponse({"scores": scores})

    return Starlette(
        routes=[
            Route("/{path:path}", describe, methods=["GET"]),
            Route("/{path:path}", answer, methods=["POST"]),
        ],
        exception_handlers={
            RefusedError: _refused,
            HTTPException: _refused_by_starlette,
            ClientDisconnect: lambda request, error: Response(),
            Exception: _failed,
        },
    )


async def _body(request: Request, limits: Limits) -> bytes:
    """The whole body. RefusedError for a large or a slow one."""
    length, parts = int(request.headers.get("content-length", 0)), []
    try:
        async with asyncio.timeout(limits.seconds):
            stream, read = request.stream(), 0
            while max(length, read) <= limits.max_bytes and (part := await anext(stream, None)) is not None:
                parts.append(part)
                read += len(part)
    except TimeoutError:
        raise RefusedError(408, f"the request was not whole after {limits.seconds:g} s") from None
    if max(length, read) > limits.max_bytes:
        raise RefusedError(413, f"a request of {max(length, read)} bytes or more; at most {limits.max_bytes}")
    return b"".join(parts)


def _error(status: int, sentence: str) -> JSONResponse:
    # A slow client is not waited for any longer: the connection closes.
    return JSONResponse({"error": sentence}, status, {"Connection": "close"} if status == 408 else None)


def _failed(request: Request, error: Exception) -> Response:
    logger.error("%s: a request failed", request.client, exc_info=error)
    return _error(500, "the server failed; its log says why")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    logger.info("%s: refused: %s", request.client, error)
    return _error(error.status, str(error))


def _refused_by_starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, f"{error.detail}: GET describes the reward, POST scores images")


LEAST = 2**19
"""Bytes of a long reply that a client must read within Limits.seconds."""


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
