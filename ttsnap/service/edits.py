"""The form of `POST /v1/images/edits`: pictures to change, and fields that are checked as those of generations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ttsnap.files.pictured import Picture
from ttsnap.files.plain_yaml import read_text
from ttsnap.files.settings import Bounds, check
from ttsnap.options.option import option
from ttsnap.request.limits import FieldError
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.requests import Generation, validated

PARTS = 40
"""Most fields of a form, and most files."""
PICTURES = 16
"""Most pictures of one edit, as in OpenAI's API."""


@dataclass(frozen=True)
class Edit(Generation):
    """The fields of a form: those of a generation, as text, and how far the picture is redrawn."""

    kind: ClassVar[str] = "image_edit"

    strength: Annotated[float, Bounds(0, 1, open_low=True)] | None = option(
        None, "how much of it is redrawn, where the model redraws"
    )


async def form_of(
    body: bytearray, headers: Headers, limits: ServiceLimits
) -> tuple[Edit, dict[str, Picture | tuple[Picture, ...]]]:
    """The fields of a form, and its pictures by argument of a pipeline's call. RequestError names the parameter.

    Several pictures of one argument make one result together.
    """

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
    try:
        images, masks = await _files(form, "image", PICTURES), await _files(form, "mask", 1)
    finally:
        await form.close()
    if not images:
        raise RequestError(400, "an edit needs a picture: send it as the file image", "image", "missing_parameter")
    pictures: dict[str, Picture | tuple[Picture, ...]] = {}
    for name, field, files in (("image", "image", images), ("mask_image", "mask", masks)):
        # Decoding on the event loop would hold up all clients.
        read = await asyncio.to_thread(_pictures, files, field, limits)
        if read:
            pictures[name] = read if len(read) > 1 else read[0]
    return validated(Edit, _fields(form), _read), pictures


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
    """The texts of a form by name. A name that ends in [] has a list."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, str) and name.endswith("[]"):
            fields.setdefault(name.removesuffix("[]"), []).append(value)
        elif isinstance(value, str):
            fields[name] = value
    return fields


async def _files(form: FormData, name: str, most: int) -> list[bytes]:
    """The files of a name, in their order. RequestError for more than `most`."""
    files = [f for key in (name, f"{name}[]") for f in form.getlist(key) if isinstance(f, UploadFile)]
    if len(files) > most:
        raise RequestError(400, f"an edit has at most {most} {name}, got {len(files)}", name, "invalid_value")
    return [await file.read() for file in files]
