"""Refuses requests that the page never makes, huge and endless ones, files of other servers, uploads to a full cache.

It also notes connections that listen to searches, so that searches without listeners end.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ttsnap.demo.listeners import Listeners
from ttsnap.reward_models.serve import parts_of

FORM = 256 * 2**10
"""Bytes of a form: a prompt and a few settings."""
SECONDS = 120.0
"""Time for a request to arrive whole."""

CLOSED = ("component_server", "custom_component", "deep_link", "dev", "monitoring", "process_recording", "profiling",
          "run-history", "undo-vibe", "vibe")  # fmt: skip
"""Addresses of gradio that this page does not use; some of them write files or run programs."""


class RequestGuard:
    """ASGI middleware around the page."""

    def __init__(self, app: ASGIApp, cache: Path, quota: int, most: int, listeners: Listeners) -> None:
        """cache: the folder of uploads. quota: bytes of the cache, checked while uploads come in. most: bytes of one
        upload. listeners: hears of every connection that waits for results."""
        self.app, self.cache, self.quota, self.most, self.listeners = app, cache, quota, most, listeners
        self.uploads = 0
        self.settled = 0
        """Bytes of whole files, as last measured, and of what came in since."""
        self.coming = 0
        """Bytes of uploads that are coming in, written or not."""
        self.broken = 0
        """Bytes of failed uploads, whose files may lie there until they are swept."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            await self._guarded(scope, receive, send)
        except HTTPException as refused:
            await PlainTextResponse(refused.detail, refused.status_code)(scope, receive, send)
        except ClientDisconnect:  # before its request was whole
            return

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope["path"]).lower()
        if "file=http" in path or "proxy=" in path or "\\" in path:
            raise HTTPException(403, "files come from this server only")
        place = path.removeprefix("/gradio_api").strip("/")
        if place.startswith(CLOSED):
            raise HTTPException(404, "not here")
        if scope["method"] == "GET" and (key := _listener(place, scope)):
            with self.listeners.listening(key):
                await self.app(scope, receive, send)
        elif scope["method"] == "POST" and place.endswith("upload"):
            await self._upload(scope, receive, send)
        elif scope["method"] in ("POST", "PUT", "PATCH"):
            body = b"".join([part async for part in parts_of(Request(scope, receive), FORM, SECONDS)])
            await self.app(scope, _again(body, receive), send)
            self.listeners.watch()
        else:
            await self.app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an upload on while it fits into one request, and with all other uploads into the quota."""
        timed, taken = _timed(receive), 0

        async def counted() -> Message:
            nonlocal taken
            message = await timed()
            size = len(message.get("body", b""))
            taken, self.coming = taken + size, self.coming + size
            if taken > self.most:
                raise HTTPException(413, f"one upload may have {self.most} bytes")
            self._check()
            return message

        self.settled = self._whole()
        self._check()
        self.uploads += 1
        begun = time.time()
        try:
            await self.app(scope, counted, send)
        except BaseException:
            self.broken += taken
            raise
        finally:
            self.coming, self.settled = self.coming - taken, self.settled + taken
            self._sweep(time.time() if self.uploads == 1 else begun - SECONDS)
            self.broken *= self.uploads > 1
            self.uploads -= 1

    def _check(self) -> None:
        """HTTPException where all uploads together do not fit into the quota."""
        if self.settled + self.coming + self.broken > self.quota:
            self.settled = self._whole()
        if self.settled + self.coming + self.broken > self.quota:
            raise HTTPException(507, "the demo holds too many files just now; try again later")

    def _whole(self) -> int:
        """Bytes of whole files in the cache: gradio moves them into folders."""
        return held(self.cache) - sum(_size(path) for path in self.cache.glob("tmp*") if path.is_file())

    def _sweep(self, before: float) -> None:
        """Delete files of uploads that were broken off."""
        for path in self.cache.glob("tmp*"):
            with suppress(OSError):  # moved or deleted meanwhile
                if path.is_file() and path.stat().st_mtime <= before:
                    path.unlink()


def held(folder: Path) -> int:
    """Bytes of the files in a folder and below."""
    return sum(_size(Path(where, name)) for where, _, names in os.walk(folder) for name in names)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # deleted meanwhile
        return 0


def uploaded(payload: Any, cache: Path) -> Path | None:
    """The file of a visitor's upload, from the page's message; None where there is none.

    ValueError for anything but a file in the cache: other paths of this machine, and addresses.
    """
    if payload is None:
        return None
    name = payload.get("path") if isinstance(payload, dict) else None
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 4000:
        raise ValueError("that is not an uploaded file; choose one and try again")
    path, root = Path(name).resolve(), cache.resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise ValueError("that is not an uploaded file; choose one and try again")
    return path


def _listener(place: str, scope: Scope) -> str:
    """The session of the page, or the id of one call, whose results a connection waits for; "" for neither."""
    if place == "queue/data":
        return QueryParams(scope.get("query_string", b"")).get("session_hash", "")
    parts = place.split("/")
    return parts[-1] if parts[0] == "call" and len(parts) > 2 else ""


def _timed(receive: Receive) -> Receive:
    """A receive that refuses requests which are not whole within SECONDS."""
    end = time.monotonic() + SECONDS

    async def timed() -> Message:
        try:
            return await asyncio.wait_for(receive(), end - time.monotonic())
        except TimeoutError:
            raise HTTPException(408, f"the request was not whole after {SECONDS:g} s") from None

    return timed


def _again(body: bytes, receive: Receive) -> Receive:
    """A receive that gives a body that was read, and then whatever follows."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
