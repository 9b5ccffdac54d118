"""The body of a request, checked, and the search that it stands for.

Fields are those of OpenAI's `POST /v1/images/generations`, and ours in addition. Clients name
rewards and searches that the operator offers, and no file, model or address. vLLM-Omni and SGLang
have other names for some fields: {"width": 512, "height": 512, "num_inference_steps": 4,
"generator_device": "cuda"} is {"size": "512x512", "steps": 4}, with a warning that generator_device
is not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from annotated_types import Interval

from ttsnap.core.names import FieldError, unknown
from ttsnap.files.plain_yaml import read_text
from ttsnap.files.reading import parse_json
from ttsnap.files.settings import Count, Positive, Rule, Share, check
from ttsnap.options.call import Scale
from ttsnap.options.engine import EngineOptions
from ttsnap.options.option import option, options_of
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import SearchFields, ServingCatalog, request_of
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
ALIASES = {"num_inference_steps": "steps", "num_outputs_per_prompt": "n"}
"""Our names of others' fields."""
CALLED = {"algorithm": "search", "mask_image": "mask"}
"""Our names of fields that are told of and not read, as their values may mean something else."""
UNUSED = {
    *("user", "safety_identifier", "request_id", "style", "bot_task"),
    *("generator_device", "vae_use_slicing", "vae_use_tiling", "enable_teacache"),
    *("return_stage_metrics", "sound_duration"),
}
"""Fields that change no image here: by the caller, the place and way of computing, or models that
this service has not.
"""
OPTIONS = ("cache_dit", "frame_interpolation_")
"""What is in the names of others' options that say how what this service has not is done."""
EITHER = ({"seconds", "num_frames"}, {"budget", "quality"})
"""Fields of which one takes the place of the other in a remix."""
OFF = {
    *(
        "lora",
        "extra_params",
        "layers",
        "system_prompt",
        "diffusers_kwargs",
        "enhance_prompt",
        "rollout",
    ),
    *(
        "enable_upscaling",
        "upscaling_model_path",
        "upscaling_scale",
        "flow_shift",
        "progressive_mode",
    ),
    *("generate_sound", "enable_frame_interpolation", "video_params", "aspect_ratio", "short_edge"),
    *("start_time_seconds", "max_sequence_length", "video_reference", "audio_reference"),
    *("reference_image", "resolution", "infer_align_image_size", "use_system_prompt", "sys_type"),
}
"""Abilities of other servers that this service lacks. Switched off they change nothing; else they
are refused."""
LORA_ALIASES = {"lora_name": "name", "adapter": "name", "lora_scale": "scale"}
"""Our names of vLLM-Omni's fields of a LoRA."""
LORA_UNUSED = {"local_path", "path", "lora_path", "lora_local_path", "int_id", "lora_int_id"}
"""Of these fields, those that change nothing: a LoRA is chosen by its name alone."""
_NOTHING: tuple[Any, ...] = (False, 0, "", "false", "0", "none", "null", {}, [], "{}", "[]")


@dataclass(frozen=True)
class Body(SearchFields):
    """The body of any request. Fields of OpenAI's API that this service cannot honour are refused
    by name."""

    kind: ClassVar[str]
    """The subject of a stream's events, and of a job."""

    size: Annotated[str, Rule("WIDTHxHEIGHT, or auto", WIDTH_HEIGHT.fullmatch)] = option(
        "auto", "WIDTHxHEIGHT, or auto"
    )
    quality: Quality = option(
        "auto",
        "the effort: compute of 5, 20 or 80 images; auto and standard are medium; hd, xhigh and max"
        " are high",
    )
    ignored: tuple[str, ...] = ()
    """Names of other fields in the body, which change nothing."""

    @property
    def effort(self) -> str:
        """low, medium or high."""
        return EFFORT.get(self.quality, self.quality)

    @property
    def batch(self) -> EngineOptions:
        """How its search shares batches."""
        return EngineOptions(fair=True)

    def call(self, offer: ServingCatalog, limits: SearchLimits) -> dict[str, Any]:
        """Further arguments of the model's own call. FieldError for fields that do not go
        together."""
        return {}


@dataclass(frozen=True)
class Generation(Body):
    """An image from a text."""

    kind: ClassVar[str] = "image_generation"

    response_format: Literal["b64_json", "url", "file"] = option(
        "b64_json",
        "images in base64, or as data: URLs; file: the image itself, or a zip of several",
    )
    output_format: Literal["png", "jpeg", "webp"] = option("png", "of images")
    output_compression: Annotated[int, Interval(ge=0, le=100)] = option(
        100, "of jpeg and webp: 100 is the best quality"
    )
    background: Literal["auto", "opaque"] | bool = option(
        "auto", "images are opaque; true: make a job of it, and answer at once"
    )
    moderation: Literal["auto", "low"] = option("auto", "taken and not used")
    stream: bool = option(False, "send events while the search runs")
    partial_images: Annotated[int, Interval(ge=0, le=3)] = option(
        0, "how often a stream shows the best estimate so far"
    )

    def call(self, offer: ServingCatalog, limits: SearchLimits) -> dict[str, Any]:
        if self.partial_images and not self.stream:
            raise FieldError(
                "partial_images", "partial images come in a stream only; set stream to true"
            )
        if self.stream and self.background is True:
            raise FieldError("background", "a job has no stream; leave background or stream out")
        if self.response_format == "file" and (self.stream or self.background is True):
            said = "a file is the whole reply; leave response_format, or stream and job, out"
            raise FieldError("response_format", said)
        return {}


@dataclass(frozen=True)
class Video(Body):
    """A video from a text, and from a first frame where the model takes one."""

    kind: ClassVar[str] = "video"

    seconds: Positive | None = option(None, "how long it is, as near as the model's frames allow")
    num_frames: Count | None = option(None, "in place of seconds")
    fps: Annotated[float, Interval(gt=0, le=120)] | None = option(
        None, "frames a second: 16, or 24 for models that read it"
    )
    frames: Annotated[int, Interval(ge=1, le=32)] = option(
        4, "frames, chosen evenly, that a reward of images sees"
    )
    output_format: Literal["mp4", "webp", "png"] = option(
        "mp4", "of videos; webp and png are animated"
    )
    response_format: Literal["file"] = option("file", "videos come as files alone")
    guidance_scale_2: Scale | None = option(
        None, "guidance of the second network, for models of two"
    )
    boundary_ratio: Share | None = option(
        None, "where the second network begins; for models of two their own"
    )

    @property
    def batch(self) -> EngineOptions:
        return replace(super().batch, frames=self.frames)

    def call(self, offer: ServingCatalog, limits: SearchLimits) -> dict[str, Any]:
        frames, second = self.length(offer, limits), offer.boundary
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
        every, rate = offer.frames_every or 1, self.rate(offer)
        frames = 1 + every * max(0, round((self.seconds * rate - 1) / every))
        if frames > limits.frames:
            most = f"{limits.frames / rate:.3g} s at {rate:g} frames a second"
            raise FieldError("seconds", f"videos last at most {most} here, got {self.seconds:g} s")
        return frames


def json_of(data: bytes) -> dict[str, Any]:
    """The object in a body. RequestError for anything else."""
    try:
        fields = parse_json(data, "the request")
    except ValueError as error:
        raise RequestError(400, str(error), code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(
            400, f"the request must be a JSON object, got {str(fields)[:60]}", code="invalid_json"
        )
    return fields


def validated(
    kind: type[B],
    fields: Mapping[str, Any],
    *,
    form: bool = False,
    earlier: Mapping[str, Any] | None = None,
) -> B:
    """Fields as a body of this kind. form: texts may stand for other values, as they do in forms.
    earlier: fields of an earlier body, which stay where nothing is given in their place.
    RequestError names the parameter."""
    hints = {option.name: option.hint for option in options_of(kind)}
    ours, called, unused = in_our_names(fields)
    replaced = {other for pair in EITHER if ours.keys() & pair for other in pair}
    ours = {name: value for name, value in (earlier or {}).items() if name not in replaced} | ours
    for field, value in ours.items():
        name = called.get(field, field)[:60]
        if field not in hints:
            raise not_taken("parameter", name, [*hints, *ALIASES, "width", "height"])
        try:
            as_text = form and isinstance(value, str)
            ours[field] = (
                read_text(name, value, hints[field])
                if as_text
                else check(name, value, hints[field])
            )
        except ValueError as error:
            raise RequestError(400, str(error), name, "invalid_value") from None
    if "prompt" not in ours:
        raise RequestError(400, "prompt is missing; say what to show", "prompt", "invalid_value")
    return kind(**ours, ignored=tuple(unused))


def not_taken(what: str, name: str, known: Iterable[str]) -> RequestError:
    """The answer to a parameter, or a file, that is none of those that are known here."""
    if name in CALLED:
        return RequestError(400, f"{name} is called {CALLED[name]} here", name, "unknown_parameter")
    if name in OFF or any(name in kind.__dataclass_fields__ for kind in (Generation, Video)):
        said = f"{name} is not offered here; leave it out"
        return RequestError(400, said, name, "unsupported_parameter")
    return RequestError(400, unknown(what, name, known), name, "unknown_parameter")


def in_our_names(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Values by our names, the caller's names by ours, and the names of fields that change nothing.

    Fields that are null are left out. RequestError for a field with two values, and for a width
    without a height.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    unused = [name for name in given if name in UNUSED or any(part in name for part in OPTIONS)]
    off = [name for name, value in given.items() if name in OFF and _plain(value) in _NOTHING]
    given = {name: value for name, value in given.items() if name not in (*unused, *off)}
    for name, other in (
        ("size", "width"),
        ("size", "height"),
        *((ours, alias) for alias, ours in ALIASES.items()),
    ):
        if name in given and other in given:
            raise RequestError(400, f"give {name} or {other}, not both", other, "invalid_value")
    if "lora" in given:
        given["lora"], more = lora_in_our_names(given["lora"])
        unused += more
    called = {ALIASES.get(name, name): name for name in given}
    ours = {
        name: given[theirs] for name, theirs in called.items() if name not in ("width", "height")
    }
    if isinstance(form := ours.get("output_format"), str):
        ours["output_format"] = form.lower()
    if "width" in given or "height" in given:
        for name in ("width", "height"):
            if not str(given.get(name, "")).isdecimal():
                got = f"got {str(given[name])[:60]!r}" if name in given else f"got no {name}"
                raise RequestError(
                    400,
                    f"width and height are whole numbers of pixels, {got}",
                    name,
                    "invalid_value",
                )
        ours["size"], called["size"] = f"{given['width']}x{given['height']}", "width"
    return ours, called, unused + off


def lora_in_our_names(value: Any) -> tuple[Any, list[str]]:
    """A LoRA, or several, and the names of its fields that change nothing. Forms have it as JSON,
    as vLLM-Omni's do."""
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            value = parse_json(value.encode(), "lora")
        except ValueError as error:
            raise RequestError(400, str(error), "lora", "invalid_value") from None
    each = value if isinstance(value, list) else [value]
    ours = [
        (
            {
                LORA_ALIASES.get(name, name): inside
                for name, inside in one.items()
                if name not in LORA_UNUSED
            }
            if isinstance(one, dict)
            else one
        )
        for one in each
    ]
    unused = {
        f"lora.{name}"
        for one in each
        if isinstance(one, dict)
        for name in one
        if name in LORA_UNUSED
    }
    return ours if isinstance(value, list) else ours[0], sorted(unused)


def _plain(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def prepared_of(
    wanted: Body,
    offer: ServingCatalog,
    limits: SearchLimits,
    pictures: Mapping[str, object] | None = None,
) -> Prepared:
    """The search of a body. pictures: of an edit, by argument of the pipeline's call. RequestError
    for what is not offered here, or more than the limits allow."""
    if wanted.model not in (None, offer.model):
        raise RequestError(
            404,
            f"no model {wanted.model!r} here; there is {offer.model!r}",
            "model",
            "model_not_found",
        )
    sides = (
        {}
        if wanted.size == "auto"
        else zip(("width", "height"), map(int, wanted.size.split("x")), strict=True)
    )
    try:
        call = {**wanted.call(offer, limits), **dict(sides), **(pictures or {})}
        effort = None if wanted.quality == "auto" else wanted.effort
        request = request_of(wanted, offer, limits, effort, **call)
        asked = replace(request, engine=replace(request.engine, batch=wanted.batch))
        return prepare(asked, offer.defaults(offer.model))
    except FieldError as error:
        raise RequestError.of(error) from None


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
    return prepared_of(
        Generation("-") if offer.frames_every is None else Video("-"), any_text, limits
    )
