"""The bodies of requests, and the searches that they stand for.

Fields are those of OpenAI's `POST /v1/images/generations`, and ours in addition: the options that
are offered. Clients name rewards and searches that the operator offers, and no file, model or
address. diffusers has other names for some fields: {"width": 512, "height": 512,
"num_inference_steps": 4} is {"size": "512x512", "steps": 4}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from annotated_types import Interval
from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from ttsnap.core.names import FieldError, nearest, unknown
from ttsnap.files.settings import Count, Fraction, Json, Positive, Rule, Share, build
from ttsnap.options.call import CALL, Scale
from ttsnap.options.every import DECLARED
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import SearchFields, ServingCatalog, names_of, request_of
from ttsnap.request.offer import notes_of as search_notes_of
from ttsnap.request.request import Prepared, prepare
from ttsnap.service.limits import RequestError

B = TypeVar("B", bound="Body")
Quality: TypeAlias = Literal["low", "medium", "high", "auto", "standard", "hd", "xhigh", "max"]
EFFORT: dict[Quality, str] = {
    "auto": "medium",
    "standard": "medium",
    "hd": "high",
    "xhigh": "high",
    "max": "high",
}
"""The effort of qualities with another name."""
WIDTH_HEIGHT = re.compile("auto|[0-9]{1,5}x[0-9]{1,5}")
FRAME = "input_reference"
"""The first frame of a video, as in OpenAI's API."""
SIDES = ("width", "height")
"""What takes the place of a size."""
OTHERS = 20
"""Most fields of a request that nobody here knows: each is compared with all that are known."""
_lower = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)


class Body(SearchFields):
    """The body of any request."""

    kind: ClassVar[str]
    """The subject of a stream's events, and of a job."""
    files: ClassVar[tuple[str, ...]] = ()
    """The pictures that it comes with."""

    size: Annotated[str, Rule("WIDTHxHEIGHT, or auto", WIDTH_HEIGHT.fullmatch)] = Field(
        "auto", description="WIDTHxHEIGHT, or auto"
    )
    quality: Quality = Field(
        "auto",
        description="the effort: compute of 5, 20 or 80 images; auto and standard are medium; hd,"
        " xhigh and max are high",
    )
    _ignored: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, given: dict[str, Any]) -> dict[str, Any]:
        """With the size that a width and a height are. FieldError for one without the other."""
        sides = {name: given[name] for name in SIDES if name in given}
        if not sides:
            return given
        if "size" in given:
            name = next(iter(sides))
            raise FieldError(name, f"give size or {name}, not both")
        for name in SIDES:
            if not re.fullmatch("[0-9]{1,5}", str(sides.get(name, ""))):
                got = f"got {str(sides[name])[:60]!r}" if name in sides else f"got no {name}"
                raise FieldError(name, f"width and height are whole numbers of pixels, {got}")
        rest = {name: value for name, value in given.items() if name not in SIDES}
        return {**rest, "size": f"{sides['width']}x{sides['height']}"}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of other fields in the body, which change nothing."""
        return self._ignored

    @property
    def effort(self) -> str:
        """low, medium or high."""
        return EFFORT.get(self.quality, self.quality)

    def written(self) -> dict[str, Json]:
        """As plain values, of which `read_body` makes the same."""
        return {"fields": self.model_dump(exclude_defaults=True), "ignored": list(self.ignored)}

    def call(self, offer: ServingCatalog, limits: SearchLimits) -> dict[str, Any]:
        """Further arguments of the model's own call. FieldError for fields that do not go
        together."""
        return {}


class Generation(Body):
    """An image from a text."""

    kind: ClassVar[str] = "image_generation"

    response_format: Literal["b64_json", "url", "file"] = Field(
        "b64_json",
        description="images in base64, or as data: URLs; file: the image itself",
    )
    output_format: Annotated[Literal["png", "jpeg", "webp"], _lower] = Field(
        "png", description="of images"
    )
    output_compression: Annotated[int, Interval(ge=0, le=100)] = Field(
        100, description="of jpeg and webp: 100 is the best quality"
    )
    background: Literal["auto", "opaque"] | bool = Field(
        "auto", description="images are opaque; true: make a job of it, and answer at once"
    )
    moderation: Literal["auto", "low"] = Field("auto", description="taken and not used")
    stream: bool = Field(False, description="send events while the search runs")
    partial_images: Annotated[int, Interval(ge=0, le=3)] = Field(
        0, description="how often a stream shows the best estimate so far"
    )

    def call(self, offer: ServingCatalog, limits: SearchLimits) -> dict[str, Any]:
        if self.partial_images and not self.stream:
            raise FieldError(
                "partial_images", "partial images come in a stream only; set stream to true"
            )
        if self.stream and self.background is True:
            raise FieldError("background", "a job has no stream; leave background or stream out")
        if self.response_format == "file" and (
            self.stream or self.background is True or self.n > 1
        ):
            said = "one image's file is the whole reply; leave n, stream and background out"
            raise FieldError("response_format", said)
        return {}


class Edit(Generation):
    """A picture changed by a text: the fields of a generation, and how far it is redrawn."""

    kind: ClassVar[str] = "image_edit"
    files: ClassVar[tuple[str, ...]] = ("image", "mask")

    strength: Fraction | None = Field(None, description=CALL["strength"].text)

    def call(self, offer: ServingCatalog, limits: SearchLimits) -> dict[str, Any]:
        return {**super().call(offer, limits), "strength": self.strength}


class Video(Body):
    """A video from a text, and from a first frame where the model takes one."""

    kind: ClassVar[str] = "video"
    files: ClassVar[tuple[str, ...]] = (FRAME,)

    seconds: Positive | None = Field(
        None, description="how long it is, as near as the model's frames allow"
    )
    num_frames: Count | None = Field(None, description="in place of seconds")
    fps: Annotated[float, Interval(gt=0, le=120)] | None = Field(
        None, description="frames a second: 16, or 24 for models that read it"
    )
    frames: Annotated[int, Interval(ge=1, le=32)] = Field(
        DECLARED["frames"].default, description=DECLARED["frames"].text
    )
    output_format: Annotated[Literal["mp4", "webp", "png"], _lower] = Field(
        "mp4", description="of videos; webp and png are animated"
    )
    response_format: Literal["file"] = Field("file", description="videos come as files alone")
    guidance_scale_2: Scale | None = Field(None, description=CALL["guidance_scale_2"].text)
    boundary_ratio: Share | None = Field(
        None, description="where the second network begins; for models of two their own"
    )

    def call(self, offer: ServingCatalog, limits: SearchLimits) -> dict[str, Any]:
        frames = self.length(offer, limits)
        second = offer.boundary
        if second is not None and self.boundary_ratio not in (None, second):
            own = (
                f"the second network of this model begins at {second:g}, got"
                f" {self.boundary_ratio:g}"
            )
            raise FieldError("boundary_ratio", f"{own}; leave boundary_ratio out")
        return {
            "num_frames": frames,
            "frame_rate": self.rate(offer) if offer.frame_rate else None,
            "guidance_scale_2": None if second is None else self.guidance_scale_2,
        }

    def rate(self, offer: ServingCatalog) -> float:
        """Frames a second."""
        return self.fps or (24.0 if offer.frame_rate else 16.0)

    def length(self, offer: ServingCatalog, limits: SearchLimits) -> int | None:
        """Frames; None for as many as the model makes by itself. FieldError for too many seconds,
        and for two lengths."""
        if self.seconds is None:
            return self.num_frames
        if self.num_frames is not None:
            raise FieldError("num_frames", "give seconds or num_frames, not both")
        every = offer.frames_every or 1
        rate = self.rate(offer)
        frames = 1 + every * max(0, round((self.seconds * rate - 1) / every))
        if frames > limits.frames:
            most = f"{limits.frames / rate:.3g} s at {rate:g} frames a second"
            raise FieldError("seconds", f"videos last at most {most} here, got {self.seconds:g} s")
        return frames


KINDS: dict[str, type[Body]] = {kind.kind: kind for kind in (Generation, Edit, Video)}
OURS = {name for kind in KINDS.values() for name in [*names_of(kind), *kind.files]}
"""The fields of all kinds of requests."""


def validated(kind: type[B], fields: Mapping[str, Any]) -> B:
    """Fields as a body of this kind; those that are null are left out, and so are those that nobody
    here knows. RequestError names the parameter: one that looks like ours, or that another kind of
    request has, is refused."""
    taken = [*names_of(kind), *SIDES]
    known = [*taken, *kind.files]
    given = {name: value for name, value in fields.items() if value is not None}
    others = [name for name in given if name not in taken]
    if len(others) > OTHERS:
        said = f"the request has {len(others)} unknown fields, and {OTHERS} are the most"
        raise RequestError(400, said, others[0][:60], "unknown_parameter")
    for name in others:
        if name in OURS or nearest(name, known) is not None:
            raise not_taken("parameter", name[:60], known)
        del given[name]
    if "prompt" not in given:
        raise RequestError(400, "prompt is missing; say what to show", "prompt", "invalid_value")
    try:
        body = build(kind, given)
    except FieldError as error:
        raise RequestError.of(error) from None
    body._ignored = tuple(name[:60] for name in others)
    return body


def read_body(kind: str, told: Mapping[str, Any]) -> Any:
    """The body that `Body.written` told of, checked as when it came. RequestError where that is no
    longer taken."""
    body = validated(KINDS[kind], told["fields"])
    body._ignored = tuple(map(str, told["ignored"]))
    return body


def not_taken(what: str, name: str, known: Iterable[str]) -> RequestError:
    """The answer to a parameter, or a file, that is none of those that are known here."""
    if name in OURS:
        said = f"{name} is not offered as a {what} here; leave it out"
        return RequestError(400, said, name, "unsupported_parameter")
    return RequestError(400, unknown(what, name, known), name, "unknown_parameter")


def prepared_of(
    wanted: Body,
    offer: ServingCatalog,
    limits: SearchLimits,
    pictures: Mapping[str, object] | None = None,
) -> Prepared:
    """The search of a body. pictures: of an edit, by argument of the pipeline's call. RequestError
    for what is not offered here, or more than the limits allow."""
    if (model := wanted.options.get("model", offer.model)) not in offer.names:
        raise no_model(model, offer)
    sides = (
        {}
        if wanted.size == "auto"
        else zip(("width", "height"), map(int, wanted.size.split("x")), strict=True)
    )
    try:
        call = {**wanted.call(offer, limits), **dict(sides), **(pictures or {})}
        effort = None if wanted.quality == "auto" else wanted.effort
        own: dict[str, Any] = {"frames": wanted.frames} if isinstance(wanted, Video) else {}
        asked = request_of(wanted, offer, limits, effort, batch={"fair": True, **own}, **call)
        return prepare(asked, offer.defaults(offer.model))
    except FieldError as error:
        raise RequestError.of(error) from None
    except ValueError as error:
        raise RequestError(400, str(error), code="invalid_value") from None


def no_model(name: str, offer: ServingCatalog) -> RequestError:
    said = f"no model {name[:100]!r} here; there is {', '.join(offer.names)}"
    return RequestError(404, said, "model", "model_not_found")


def notes_of(wanted: Body, request: Prepared, limits: SearchLimits) -> tuple[str, ...]:
    """How the search differs from what the client wanted."""
    low = isinstance(wanted, Generation) and wanted.moderation == "low"
    unused = [*wanted.ignored, *["moderation"] * low]
    if isinstance(wanted, Video):
        networks = {
            "guidance_scale_2": wanted.guidance_scale_2,
            "boundary_ratio": wanted.boundary_ratio,
        }
        unused += [
            name
            for name, value in networks.items()
            if value is not None and name not in request.call
        ]
    notes = [f"not used here: {', '.join(unused)}"] if unused else []
    return (*notes, *search_notes_of(request, limits))


def plain(offer: ServingCatalog, limits: SearchLimits) -> Prepared:
    """The search of a prompt alone."""
    any_text = replace(offer, defaults=lambda model: replace(offer.defaults(model), canonical=str))
    kind = Generation if offer.frames_every is None else Video
    return prepared_of(validated(kind, {"prompt": "-"}), any_text, limits)
