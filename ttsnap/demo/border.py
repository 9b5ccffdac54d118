"""Refuses requests that the page never makes, huge ones, files from other servers, and uploads to a full cache."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
FORM = 256 * 2**10
"""Bytes of a form, which holds no more than a prompt and a few settings."""

CLOSED = ("component_server", "custom_component", "deep_link", "dev", "monitoring", "process_recording", "profiling",
          "run-history", "undo-vibe", "vibe")  # fmt: skip
"""Addresses of gradio's that this page has no use for; some of them write files or run programs."""


class Border:
    """ASGI middleware. `cache` is where uploads land; none is taken once it holds `quota` bytes."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], cache: Path, quota: int) -> None:
        self.app, self.cache, self.quota = app, cache, quota

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = str(scope["path"]).lower()
        if "file=http" in path or "proxy=" in path or "\\" in path:
            return await _refuse(send, 403, "files come from this server only")
        if path.removeprefix("/gradio_api").lstrip("/").startswith(CLOSED):
            return await _refuse(send, 404, "not here")
        if scope["method"] == "POST" and path.rstrip("/").endswith("/upload"):
            if held(self.cache) > self.quota:
                return await _refuse(send, 507, "the demo holds too many files just now; try again later")
        elif scope["method"] in ("POST", "PUT", "PATCH"):
            body = await _body(receive, FORM)
            if body is None:
                return await _refuse(send, 413, f"a request may have {FORM} bytes")
            receive = _again(body, receive)
        await self.app(scope, receive, send)


def held(folder: Path) -> int:
    """Bytes of the files in a folder, those below included."""
    sizes = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                sizes += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # deleted meanwhile
                continue
    return sizes


def uploaded(payload: Any, cache: Path) -> Path | None:
    """The file that a visitor uploaded, from what the page sent; None where there is none.

    ValueError for anything that is not a file in the cache: other paths of this machine, and addresses.
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


async def _body(receive: Receive, most: int) -> bytes | None:
    """The request's body, None where it is larger than `most`."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > most:
            return None
        if not message.get("more_body", False):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body that was read, and then whatever follows."""
    given = False

    async def again() -> Scope:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Send, status: int, why: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": why.encode()})
