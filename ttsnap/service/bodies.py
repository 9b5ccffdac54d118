"""Bodies of requests: how they arrive, within limits, what was sent in them, and how the
documentation shows them.

A body is JSON, or a form of either kind. Whatever its route, it is read here, outside the event
loop: fields within `ServiceLimits.body_bytes`, and pictures apart.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import sys
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import MISSING, dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Request
from pydantic import ConfigDict, Field, create_model
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from ttsnap.files.plain_yaml import read_text
from ttsnap.files.settings import Json
from ttsnap.options.option import options_of
from ttsnap.reward_models.serve import parts_of
from ttsnap.service.limits import RequestError, ServiceLimits, stopping
from ttsnap.service.requests import Body, json_of

FRAME, REFERENCE = "input_reference", "image_reference"
"""The first frame of a video, as in OpenAI's API, and as vLLM-Omni has it beside."""
URL = "url"
"""A picture of an edit as the text of a form, as vLLM-Omni's clients send it; or several."""
PARTS = 40
"""Most fields of a form, and most files."""
LONGEST = 100
"""Characters of a value inside a dictionary, which may be a number."""
BLOCK, LARGE, LATER = 2**16, 2**20, 2.0
"""Bytes of a form that are unescaped at a time; bytes of a body whose memory is given back; seconds
until then."""
PICTURE = re.compile(rb'"data:image\\?/[^"\\,]{1,60};base64,[A-Za-z0-9+/=\\]*+"')
BINARY: Json = {"type": "string", "format": "binary"}
FILES, FRAMES = {"image": BINARY, "mask": BINARY}, {FRAME: BINARY}
"""Files of an edit, and of a video, for their documentation."""


def body_schema(
    kind: type[Body], media: str, files: Mapping[str, Json] | None = None
) -> dict[str, Any]:
    """The documentation of a body with the fields of a kind, and with files."""
    declared: Any = {}
    for option in options_of(kind):
        default = ... if option.default is MISSING else option.default
        declared[option.name] = option.hint, Field(default, description=option.text)
    model: Any = create_model(
        kind.__name__, __doc__=kind.__doc__, __config__=ConfigDict(extra="forbid"), **declared
    )
    fields = model.model_json_schema()
    fields["properties"] = {**(files or {}), **fields["properties"]}
    fields["required"] = [name for name in ("image", "prompt") if name in fields["properties"]]
    return {"requestBody": {"required": True, "content": {media: {"schema": fields}}}}


@dataclass(frozen=True)
class Sent:
    """What a client sent."""

    fields: dict[str, Any]
    """By name. Of a form: texts, a list of those of NAME[], a dictionary of those of NAME[KEY]."""
    files: dict[str, list[bytes]] = field(default_factory=dict)
    form: bool = False
    """Whether texts may stand for other values."""


class Bodies:
    """Bodies of requests as they arrive, bounded together however many clients send at once."""

    def __init__(self, limits: ServiceLimits) -> None:
        self.limits, self.held = limits, 0
        self._later: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def of(self, request: Request, most: int) -> AsyncGenerator[Sent, None]:
        """What was sent in a request of at most `most` bytes, which count as held until the block
        ends. RequestError for a large, a slow or a damaged body, and where others hold too much."""
        body = bytearray()
        try:
            await self._read(request, most, body)
            yield await asyncio.to_thread(sent, body, request.headers, self.limits)
        except HTTPException as refused:
            code = {413: "too_large", 400: "invalid_json"}.get(refused.status_code)
            raise RequestError(refused.status_code, refused.detail, code=code) from None
        finally:
            self.held -= len(body)
            self._give_back(len(body))

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

    def _give_back(self, size: int) -> None:
        """Have the system take back what large bodies took, once for all that end within seconds:
        glibc would keep it for as long as the process runs."""
        loop = asyncio.get_running_loop()
        waiting = self._later is not None and self._later.when() > loop.time()
        if size >= LARGE and not waiting and sys.platform == "linux":
            # other libraries of C have none
            trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
            self._later = loop.call_later(LATER, loop.run_in_executor, None, trim, 0)


def sent(body: bytearray, headers: Headers, limits: ServiceLimits) -> Sent:
    """What stands in a body. RequestError and HTTPException for a damaged one, and for more than
    the limits.

    A form by its type is JSON where it looks so: curl -d has that type for anything.
    """
    kind, _, more = headers.get("content-type", "").lower().partition(";")
    if kind.strip() == "multipart/form-data":
        # Some charsets take hours to decode a megabyte, as punycode.
        if "charset" in more.replace('"', "").replace("charset=utf-8", ""):
            raise RequestError(
                400, "the text of a form must be UTF-8; leave charset out", code="invalid_form"
            )
        texts, files = asyncio.run(_multipart(body, headers, limits))
    elif kind.strip() == "application/x-www-form-urlencoded" and not body[
        :BLOCK
    ].lstrip().startswith(b"{"):
        texts, files = _urlencoded(body, limits), {}
    else:
        return Sent(_json(body, limits))
    fields = _fields((f"{URL}[]" if name == URL else name, value) for name, value in texts)
    for name in (FRAME, REFERENCE):
        # as vLLM-Omni's clients send it
        if isinstance(text := fields.get(name), str) and text.startswith("{"):
            fields |= _json(b'{"%b":%b}' % (name.encode(), text.encode()), limits)
    pictured = (FRAME, REFERENCE, URL)
    rest = [text for name, text in texts if name.partition("[")[0] not in pictured]
    if sum(map(len, rest)) > limits.body_bytes:
        raise HTTPException(
            413,
            f"texts of a form are above their maximum size of {limits.body_bytes} bytes together",
        )
    return Sent(fields, files, form=True)


def _json(body: bytes | bytearray, limits: ServiceLimits) -> dict[str, Any]:
    """The object in a JSON body, which may be large by a first frame alone."""
    if len(body) <= limits.body_bytes:
        return json_of(bytes(body))
    most = limits.body_bytes
    picture = max(
        PICTURE.finditer(body), key=lambda found: found.end() - found.start(), default=None
    )
    if picture is not None and len(body) - len(picture[0]) <= most:
        fields = json_of(
            b'%b"the picture"%b' % (bytes(body[: picture.start()]), bytes(body[picture.end() :]))
        )
        for name in (FRAME, REFERENCE):
            if fields.get(name) == {"image_url": "the picture"}:
                return {**fields, name: json_of(b'{"image_url":%b}' % picture[0])}
    raise HTTPException(
        413, f"a request of {len(body)} bytes; at most {most} beside the picture of {FRAME}"
    )


async def _multipart(
    body: bytearray, headers: Headers, limits: ServiceLimits
) -> tuple[list[tuple[str, str]], dict[str, list[bytes]]]:
    """The texts and the files of a form."""

    async def whole() -> AsyncGenerator[bytes, None]:
        for at in range(0, len(body), LARGE):
            yield bytes(body[at : at + LARGE])

    parser = MultiPartParser(
        headers, whole(), max_files=PARTS, max_fields=PARTS, max_part_size=limits.form_bytes
    )
    parser.spool_max_size = limits.form_bytes  # in memory, not on the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestError(400, f"the form cannot be read: {error}", code="invalid_form") from None
    files: dict[str, list[bytes]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(name.removesuffix("[]"), []).append(value.file.read())
            value.file.close()
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)], files


def _urlencoded(body: bytearray, limits: ServiceLimits) -> list[tuple[str, str]]:
    """The texts of a form without files, as `requests.post(data=...)` and curl -d send it."""
    pairs = [pair.partition(b"=") for pair in body.split(b"&", PARTS)]
    if len(pairs) > PARTS:
        said = f"Too many fields. Maximum number of fields is {PARTS}."
        raise RequestError(400, f"the form cannot be read: {said}", code="invalid_form")
    try:
        return [(_unescaped(name), _unescaped(value)) for name, _, value in pairs]
    except UnicodeDecodeError:
        raise RequestError(
            400, "a text of the form is no UTF-8, or long and no ASCII", code="invalid_form"
        ) from None


def _unescaped(text: bytes | bytearray) -> str:
    """Without the escapes of a form. In blocks, as urllib makes an object of each escape."""
    text, whole, at = text.replace(b"+", b" "), bytearray(), 0
    while at < len(text):
        end = text.find(b"%", at + BLOCK) % (len(text) + 1)  # -1: at the end
        whole += unquote_to_bytes(bytes(text[at:end]))
        at = end
    # one wide sign takes four bytes for each
    return whole.decode("utf-8" if len(whole) <= BLOCK else "ascii")


def _fields(texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in texts:
        outer, bracket, key = name.removesuffix("]").partition("[")
        inside = fields.setdefault(outer, {} if key else []) if bracket else None
        # of options, as {"name": "svdd", "streams": 3}, or a long address
        if isinstance(inside, dict) and key:
            inside[key] = read_text(key, value, Any) if len(value) <= LONGEST else value
        elif isinstance(inside, list) and not key:
            inside.append(value)
        else:
            fields[name] = value
    return fields
