"""Requests with pictures: the forms of `POST /v1/images/edits` and `/v1/videos`, checked as
generations are."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from ttsnap.core.names import FieldError
from ttsnap.files.pictured import Picture
from ttsnap.files.settings import Fraction
from ttsnap.options.option import option
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import ServingCatalog
from ttsnap.service.bodies import FRAME, REFERENCE, URL, Sent
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.requests import Generation, Video, not_taken, validated

PICTURES = 16
"""Most pictures of one edit, as in OpenAI's API."""
Pictures: TypeAlias = dict[str, Picture | tuple[Picture, ...]]
"""By argument of a pipeline's call."""


@dataclass(frozen=True)
class Edit(Generation):
    """The fields of a form: those of a generation, as text, and how far the picture is redrawn."""

    kind: ClassVar[str] = "image_edit"

    strength: Fraction | None = option(None, "how much of it is redrawn, where the model redraws")

    def call(self, offer: ServingCatalog, limits: SearchLimits) -> dict[str, Any]:
        return {**super().call(offer, limits), "strength": self.strength}


async def edit_of(sent: Sent, limits: ServiceLimits) -> tuple[Edit, Pictures]:
    """The edit in a form, and its pictures. RequestError names the parameter.

    Several pictures of one argument make one result together.
    """
    images, masks = _files(sent.files, "image", PICTURES), _files(sent.files, "mask", 1)
    _refuse_others(sent.files, "image", "mask")
    fields = dict(sent.fields)
    urls = _files(fields, URL, PICTURES - len(images)) if sent.form else []
    images = [*images, *await asyncio.to_thread(lambda: [_inline(url, URL) for url in urls])]
    fields.pop(URL, None)
    if not images:
        how = "send it as the file image of multipart/form-data"
        raise RequestError(400, f"an edit needs a picture: {how}", "image", "missing_parameter")
    pictures: dict[str, tuple[Picture, ...]] = {}
    for name, field, found in (("image", "image", images), ("mask_image", "mask", masks)):
        # Decoding on the event loop would hold up all clients.
        pictures[name] = await asyncio.to_thread(_pictures, found, field, limits)
    return validated(Edit, fields, form=True), arguments_of(pictures)


async def video_of(sent: Sent, limits: ServiceLimits) -> tuple[Video, Pictures]:
    """The video in a form or in JSON, and its first frame, where it has one: as a file, or as a
    data: URL. RequestError names the parameter."""
    found = _files(sent.files, FRAME, 1)
    _refuse_others(sent.files, FRAME)
    references = [name for name in (FRAME, REFERENCE) if sent.fields.get(name) is not None]
    if len(found) + len(references) > 1:
        raise RequestError(
            400, f"give one first frame, as {FRAME}", references[-1], "invalid_value"
        )
    for name in references:
        found = [await asyncio.to_thread(_inline, sent.fields[name], name)]
    pictures = await asyncio.to_thread(_pictures, found, FRAME, limits.of_videos)
    fields = {name: value for name, value in sent.fields.items() if name not in (FRAME, REFERENCE)}
    return validated(Video, fields, form=True), arguments_of({"image": pictures})


def _inline(reference: object, name: str) -> bytes:
    """The picture of "data:..." or {"image_url": "data:..."}. RequestError for an address, which
    nobody here connects to."""
    url = reference.get("image_url") if isinstance(reference, Mapping) else reference
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        how = "send a file, or data:image/...;base64,..."
        raise RequestError(400, f"{name} is a picture: {how}", name, "invalid_value")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise RequestError(400, f"{name} holds no base64", name, "invalid_image") from None


def arguments_of(pictures: Mapping[str, tuple[Picture, ...]]) -> Pictures:
    """Arguments of the pipeline's call: one picture alone where there is one."""
    return {
        name: found if len(found) > 1 else found[0] for name, found in pictures.items() if found
    }


def _pictures(files: Sequence[bytes], field: str, limits: ServiceLimits) -> tuple[Picture, ...]:
    """RequestError for bytes of no picture, and for a large picture, before it is decoded."""
    try:
        return tuple(limits.picture(data, field, mask=field == "mask") for data in files)
    except FieldError as error:
        raise RequestError.of(error) from None
    except ValueError as error:
        raise RequestError(400, str(error), field, "invalid_image") from None


def _refuse_others(files: Mapping[str, object], *names: str) -> None:
    """RequestError for a file of another name, as for a text."""
    if other := next((name for name in files if name not in names), None):
        raise not_taken("file", other[:60], names)


def _files(files: Mapping[str, Any], name: str, most: int) -> list[Any]:
    """The files of a name, in their order. RequestError for more than `most`."""
    found: list[Any] = files.get(name, [])
    if len(found) > most:
        raise RequestError(
            400, f"a request has at most {most} {name}, got {len(found)}", name, "invalid_value"
        )
    return found
