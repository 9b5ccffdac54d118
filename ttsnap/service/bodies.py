"""Bodies of requests: how they arrive, within limits, and how the documentation shows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import MISSING
from typing import Any

from fastapi import Request
from pydantic import ConfigDict, Field, create_model

from ttsnap.files.settings import Json
from ttsnap.options.option import options_of
from ttsnap.reward_models.connections import RefusedError, parts_of
from ttsnap.service.edits import FRAME
from ttsnap.service.limits import RequestError, ServiceLimits, stopping
from ttsnap.service.requests import Body

BINARY: Json = {"type": "string", "format": "binary"}
FILES, FRAMES = {"image": BINARY, "mask": BINARY}, {FRAME: BINARY}
"""Files of an edit, and of a video, for their documentation."""


def body_schema(kind: type[Body], media: str, files: Mapping[str, Json] | None = None) -> dict[str, Any]:
    """The documentation of a body with the fields of a kind, and with files."""
    declared: Any = {}
    for option in options_of(kind):
        default = ... if option.default is MISSING else option.default
        declared[option.name] = option.hint, Field(default, description=option.text)
    model: Any = create_model(kind.__name__, __doc__=kind.__doc__, __config__=ConfigDict(extra="forbid"), **declared)
    fields = model.model_json_schema()
    fields["properties"] = {**(files or {}), **fields["properties"]}
    fields["required"] = [name for name in ("image", "prompt") if name in fields["properties"]]
    return {"requestBody": {"required": True, "content": {media: {"schema": fields}}}}


class Bodies:
    """Bodies of requests as they arrive, bounded together however many clients send at once."""

    def __init__(self, limits: ServiceLimits) -> None:
        self.limits, self.held = limits, 0

    @asynccontextmanager
    async def of(self, request: Request, most: int) -> AsyncGenerator[bytearray, None]:
        """The whole body of a request, of `most` bytes, until the block ends. RequestError for a large or a slow body,
        and where others hold too much."""
        body = bytearray()
        try:
            await self._read(request, most, body)
            yield body
        finally:
            self.held -= len(body)

    async def _read(self, request: Request, most: int, body: bytearray) -> None:
        try:
            async for part in parts_of(request, most, self.limits.body_seconds):
                body += part
                self.held += len(part)
                if self.held > self.limits.held:
                    busy = "others send too much at this moment; try again later"
                    raise RequestError(503, busy, code="busy", retry_after=5)
        except asyncio.CancelledError:  # by uvicorn at the end of its time
            raise stopping() from None
        except RefusedError as refused:
            code = "too_large" if refused.status == 413 else None
            raise RequestError(refused.status, str(refused), code=code) from None
