"""Requests with pictures: the forms of `POST /v1/images/edits` and `/v1/videos`, checked as generations are."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ttsnap.core.names import unknown
from ttsnap.files.pictured import Picture
from ttsnap.files.plain_yaml import read_text
from ttsnap.files.settings import Bounds, check
from ttsnap.options.option import option
from ttsnap.request.limits import FieldError
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.requests import Generation, Video, json_of, validated

PARTS = 40
"""Most fields of a form, and most files."""
PICTURES = 16
"""Most pictures of one edit, as in OpenAI's API."""
LONGEST = 100
"""Characters of a value inside a dictionary, which may be a number."""
FRAME = "input_reference"
"""The first frame of a video, as in OpenAI's API."""
Pictures: TypeAlias = dict[str, Picture | tuple[Picture, ...]]
"""By argument of a pipeline's call."""


@dataclass(frozen=True)
class Edit(Generation):
    """The fields of a form: those of a generation, as text, and how far the picture is redrawn."""

    kind: ClassVar[str] = "image_edit"

    strength: Annotated[float, Bounds(0, 1, open_low=True)] | None = option(
        None, "how much of it is redrawn, where the model redraws"
    )


async def edit_of(body: bytearray, headers: Headers, limits: ServiceLimits) -> tuple[Edit, Pictures]:
    """The edit in a form, and its pictures. RequestError names the parameter.

    Several pictures of one argument make one result together.
    """
    fields, files = await _form(body, headers)
    images, masks = _files(files, "image", PICTURES), _files(files, "mask", 1)
    _refuse_others(files, "image", "mask")
    if not images:
        raise RequestError(400, "an edit needs a picture: send it as the file image", "image", "missing_parameter")
    pictures: dict[str, tuple[Picture, ...]] = {}
    for name, field, found in (("image", "image", images), ("mask_image", "mask", masks)):
        # Decoding on the event loop would hold up all clients.
        pictures[name] = await asyncio.to_thread(_pictures, found, field, limits)
    return validated(Edit, fields, _read), arguments_of(pictures)


async def video_of(body: bytearray, headers: Headers, limits: ServiceLimits) -> tuple[Video, Pictures]:
    """The video in a form or in JSON, and its first frame, where it has one: as a file, or as a data: URL. RequestError
    names the parameter."""
    if headers.get("content-type", "").lower().startswith("multipart/"):
        fields, files = await _form(body, headers)
    else:
        fields, files = json_of(bytes(body)), {}
    found = _files(files, FRAME, 1)
    _refuse_others(files, FRAME)
    if (reference := fields.pop(FRAME, None)) is not None:
        found = [_inline(reference), *found]
    pictures = await asyncio.to_thread(_pictures, found, FRAME, limits.of_videos)
    return validated(Video, fields, _read), arguments_of({"image": pictures})


def _inline(reference: object) -> bytes:
    """The picture of {"image_url": "data:..."}. RequestError for an address, which nobody here connects to."""
    url = reference.get("image_url") if isinstance(reference, Mapping) else None
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        how = "send a file, or image_url with data:image/...;base64,..."
        raise RequestError(400, f"{FRAME} is the first frame: {how}", FRAME, "invalid_value")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise RequestError(400, f"{FRAME} holds no base64", FRAME, "invalid_image") from None


def arguments_of(pictures: Mapping[str, tuple[Picture, ...]]) -> Pictures:
    """Arguments of the pipeline's call: one picture alone where there is one."""
    return {name: found if len(found) > 1 else found[0] for name, found in pictures.items() if found}


async def _form(body: bytearray, headers: Headers) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The texts and the files of a form, by name."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    kind, _, more = headers.get("content-type", "").lower().partition(";")
    if kind.strip() != "multipart/form-data":
        raise RequestError(400, f"edits come as multipart/form-data, got {kind.strip()[:60]!r}", code="invalid_form")
    # Some charsets take hours to decode a megabyte, as punycode.
    if "charset" in more.replace('"', "").replace("charset=utf-8", ""):
        raise RequestError(400, "the text of a form must be UTF-8; leave charset out", code="invalid_form")
    try:
        form = await MultiPartParser(headers, whole(), max_files=PARTS, max_fields=PARTS).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestError(400, f"the form cannot be read: {error}", code="invalid_form") from None
    files: dict[str, list[bytes]] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
    finally:
        await form.close()
    return _fields(form), files


def _read(name: str, value: Any, hint: Any) -> Any:
    """A value of a form: a text, or a list of texts."""
    return read_text(name, value, hint) if isinstance(value, str) else check(name, value, hint)


def _pictures(files: Sequence[bytes], field: str, limits: ServiceLimits) -> tuple[Picture, ...]:
    """RequestError for bytes of no picture, and for a large picture, before it is decoded."""
    try:
        return tuple(limits.picture(data, field, mask=field == "mask") for data in files)
    except FieldError as error:
        raise RequestError.of(error) from None
    except ValueError as error:
        raise RequestError(400, str(error), field, "invalid_image") from None


def _fields(form: FormData) -> dict[str, Any]:
    """The texts of a form by name: a list of those of NAME[], a dictionary of those of NAME[KEY]."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if not isinstance(value, str):
            continue
        outer, bracket, key = name.removesuffix("]").partition("[")
        inside = fields.setdefault(outer, {} if key else []) if bracket else None
        if isinstance(inside, dict) and key:  # of options, as {"name": "svdd", "streams": 3}, or a long address
            inside[key] = read_text(key, value, Any) if len(value) <= LONGEST else value
        elif isinstance(inside, list) and not key:
            inside.append(value)
        else:
            fields[name] = value
    return fields


def _refuse_others(files: Mapping[str, object], *names: str) -> None:
    """RequestError for a file of another name, as for a text."""
    if other := next((name for name in files if name not in names), None):
        raise RequestError(400, unknown("file", other[:60], names), other[:60], "unknown_parameter")


def _files(files: Mapping[str, list[bytes]], name: str, most: int) -> list[bytes]:
    """The files of a name, in their order. RequestError for more than `most`."""
    found = files.get(name, [])
    if len(found) > most:
        raise RequestError(400, f"a request has at most {most} {name}, got {len(found)}", name, "invalid_value")
    return found
