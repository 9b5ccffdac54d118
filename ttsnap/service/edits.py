"""`POST /v1/images/edits`: a form with a picture to change, checked as a request for a generation is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ttsnap.files.reading import picture_pixels
from ttsnap.service.errors import RequestError
from ttsnap.service.limits import Limits
from ttsnap.service.requests import Generation, validated

FORMATS = ("PNG", "JPEG", "WEBP")
PARTS = 40
"""Fields of a form, and files, that are read at most."""


class Edit(Generation):
    """The fields of a form: those of a generation, as text, and how far the picture is redrawn."""

    model_config = ConfigDict(extra="forbid", strict=False)
    kind = "image_edit"

    strength: float | None = Field(None, gt=0, le=1, description="how much of it is redrawn, where the model redraws")


@dataclass(frozen=True)
class Picture:
    """A picture as a client sent it. Equal files are one picture, so that requests for it share an engine. mask:
    whether it says where to paint: where it is transparent, as in OpenAI's API, or white, where nothing is."""

    data: bytes = field(repr=False)
    mask: bool = False

    def opened(self) -> Image.Image:
        """In colours; a mask in black and white, white being painted anew."""
        pixels = picture_pixels(self.data, "the picture", formats=FORMATS, alpha=True)
        if not self.mask:
            return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        where = pixels[..., 3] == 0 if pixels.shape[-1] == 4 else pixels.mean(-1) > 127
        return Image.fromarray((255 * where).astype(np.uint8))


def opened(call: Mapping[str, object]) -> dict[str, object]:
    """Arguments of a pipeline's call, with the pictures among them opened."""
    return {name: value.opened() if isinstance(value, Picture) else value for name, value in call.items()}


async def form_of(body: bytes, headers: Headers, limits: Limits) -> tuple[Edit, dict[str, Picture]]:
    """The fields of a form, and its pictures by argument of a pipeline's call. RequestError that names the
    parameter."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError(400, f"edits come as multipart/form-data, got {kind[:60]!r}", code="invalid_form")
    try:
        form = await MultiPartParser(headers, whole(), max_files=PARTS, max_fields=PARTS).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestError(400, f"the form cannot be read: {error}", code="invalid_form") from None
    try:
        files = {"image": await _file(form, "image"), "mask_image": await _file(form, "mask")}
    finally:
        await form.close()
    pictures = {name: Picture(data, name == "mask_image") for name, data in files.items() if data is not None}
    if "image" not in pictures:
        raise RequestError(400, "an edit needs a picture: send it as the file image", "image", "missing_parameter")
    for name, picture in pictures.items():
        param = "mask" if picture.mask else name
        try:
            size = picture.opened().size
        except ValueError as error:
            raise RequestError(400, str(error), param, "invalid_image") from None
        if max(size) > limits.side:
            most = f"pictures have sides of at most {limits.side} pixels here"
            raise RequestError(400, f"{most}, got {size[0]} x {size[1]}", param, "invalid_value")
    return validated(Edit, _fields(form)), pictures


def _fields(form: FormData) -> dict[str, Any]:
    """The texts of a form by name; a name that ends in [] has a list."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, str) and name.endswith("[]"):
            fields.setdefault(name.removesuffix("[]"), []).append(value)
        elif isinstance(value, str):
            fields[name] = value
    return fields


async def _file(form: FormData, name: str) -> bytes | None:
    """The one file of this name. RequestError for several."""
    files = [f for key in (name, f"{name}[]") for f in form.getlist(key) if isinstance(f, UploadFile)]
    if len(files) > 1:
        raise RequestError(400, f"one {name} is edited at a time, got {len(files)}", name, "invalid_value")
    return await files[0].read() if files else None
