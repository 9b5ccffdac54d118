"""What a client may send: the body of a request, and the search that it asks for.

The fields are those of OpenAI's `POST /v1/images/generations`, with ours beside them. A client names rewards and
searches that the operator offers, and no file, model or address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from ttsnap.files.reading import parse_json
from ttsnap.files.settings import Bounds, Rule, Settings, hints_of
from ttsnap.options.engine import EngineOptions
from ttsnap.options.option import option, values
from ttsnap.request.limits import FieldError, SearchLimits
from ttsnap.request.offer import CommonFields, Offer, SearchFields
from ttsnap.request.offer import request_of as search_request_of
from ttsnap.request.request import SearchRequest
from ttsnap.service.fields import validated
from ttsnap.service.limits import RequestError

Format: TypeAlias = Literal["png", "jpeg", "webp"]
Quality: TypeAlias = Literal["low", "medium", "high", "auto", "standard", "hd"]
EFFORT: dict[Quality, str] = {"auto": "medium", "standard": "medium", "hd": "high"}
"""The effort of qualities that go by another name."""
FAIR = EngineOptions(fair=True)
WIDTH_HEIGHT = r"^(auto|[0-9]{1,5}x[0-9]{1,5})$"


@dataclass(frozen=True)
class Generation(Settings, CommonFields):
    """The body of a request. What OpenAI's API has and this service cannot honour is refused by name."""

    kind: ClassVar[str] = "image_generation"
    """What events of a stream are about."""

    size: Annotated[str, Rule("WIDTHxHEIGHT, or auto", re.compile(WIDTH_HEIGHT).search)] = option(
        "auto", "WIDTHxHEIGHT, or auto"
    )
    quality: Quality = option(
        "auto", "the effort: compute of 5, 20 or 80 images; auto and standard are medium, hd is high"
    )
    response_format: Literal["b64_json", "url"] = option("b64_json", "images in base64, or as data: URLs")
    output_format: Format = option("png", "of images")
    output_compression: Annotated[int, Bounds(0, 100)] = option(100, "of jpeg and webp: 100 is the best quality")
    background: Literal["auto", "opaque"] = option("auto", "images are opaque")
    moderation: Literal["auto", "low"] = option("auto", "taken and not used")
    stream: bool = option(False, "send events while the search runs")
    partial_images: Annotated[int, Bounds(0, 3)] = option(0, "how often a stream shows the best estimate so far")
    ignored: tuple[str, ...] = ()
    """The names of what was sent besides, and is not used."""

    @property
    def effort(self) -> str:
        """low, medium or high."""
        return EFFORT.get(self.quality, self.quality)

    @property
    def unused(self) -> tuple[str, ...]:
        """What was sent and changes nothing here, by name."""
        return self.ignored + ("moderation",) * (self.moderation == "low")


def parse(body: bytes) -> Generation:
    """What a body holds. RequestError that names the parameter."""
    try:
        fields = parse_json(body, "the request")
    except ValueError as error:
        raise RequestError(400, str(error), code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(400, f"the request must be a JSON object, got {str(fields)[:60]}", code="invalid_json")
    return validated(Generation, fields)


def request_of(
    wanted: Generation, offer: Offer, limits: SearchLimits, pictures: Mapping[str, object] | None = None
) -> SearchRequest:
    """What runs. pictures: of an edit, by argument of the pipeline's call. RequestError for what is not offered here,
    or more than the limits allow."""
    if wanted.model not in (None, offer.model):
        raise RequestError(404, f"no model {wanted.model!r} here; there is {offer.model!r}", "model", "model_not_found")
    ours = hints_of(SearchFields).keys() - {"model", "size"}
    fields: dict[str, Any] = {name: value for name, value in values(wanted).items() if name in ours}
    fields["size"] = None if wanted.size == "auto" else tuple(map(int, wanted.size.split("x")))
    fields["effort"] = None if wanted.quality == "auto" else wanted.effort
    try:
        if wanted.partial_images and not wanted.stream:
            raise FieldError("partial_images", "partial images come in a stream only; set stream to true")
        asked = search_request_of(SearchFields.of({**fields, **(pictures or {})}), offer, limits)
    except FieldError as error:
        raise RequestError.of(error) from None
    unused = [f"not used here: {', '.join(wanted.unused)}"] if wanted.unused else []
    return replace(asked, engine=replace(asked.engine, batch=FAIR), notes=(*unused, *asked.notes))


def plain(offer: Offer, limits: SearchLimits) -> SearchRequest:
    """A request that says nothing but its prompt."""
    return request_of(Generation("-"), offer, limits)
