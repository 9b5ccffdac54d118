"""A server for any reward, by the protocol of http.py: Starlette on uvicorn.

It has no authentication, so it is for trusted networks. Nothing that a client sends makes it grow or hang: memory holds
at most HELD requests of Limits.max_bytes, and the others wait unread. One request at a time is parsed, decoded in
batches of request.BATCH_PIXELS, and scored.
"""

from __future__ import annotations

import asyncio
import logging

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ttsnap.core.protocols import Reward
from ttsnap.reward_models.connections import Limits, RefusedError, SocketServer, parts_of
from ttsnap.reward_models.request import parse, score
from ttsnap.rewards.reward_model import adapted
from ttsnap.rewards.scoring import Shown

logger = logging.getLogger(__name__)
HELD, GRACE = 4, 5
"""Requests in memory at a time; seconds for running requests at the end."""


class RewardServer(SocketServer):
    """Serves one reward. Running requests get seconds to end; a running call of the reward is awaited.

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
        super().__init__(make_app(reward, limits, device), (host, port), limits, grace=GRACE)


def make_app(reward: Reward, limits: Limits, device: torch.device | str = "cpu") -> Starlette:
    """The web application: GET describes the reward, POST scores images. Errors are JSON with a sentence."""
    Shown().check([adapted(reward)])
    room, turn = asyncio.Semaphore(HELD), asyncio.Lock()

    async def describe(request: Request) -> Response:
        return JSONResponse({"name": reward.name, "max_images": limits.max_images})

    async def answer(request: Request) -> Response:
        try:
            async with room:
                body = b"".join([part async for part in parts_of(request, limits.max_bytes, limits.seconds)])
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
