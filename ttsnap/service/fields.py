"""What callers of OpenAI's API, vLLM-Omni and SGLang send: other names of our fields, and what changes nothing here.

For example {"num_inference_steps": 4, "width": 512, "height": 512, "generator_device": "cuda"} is {"steps": 4, "size":
"512x512"}, of which generator_device is told not to be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ttsnap.core.names import unknown
from ttsnap.files.settings import check
from ttsnap.options.option import options_of
from ttsnap.service.limits import RequestError

Fields = TypeVar("Fields")
ALIASES = {"num_inference_steps": "steps"}
"""Other names of our fields."""
UNUSED = {
    *("user", "safety_identifier", "request_id"),
    *("generator_device", "vae_use_slicing", "vae_use_tiling", "enable_teacache"),
}
"""How or where others compute, and who asks: the images are the same without. So are fields of cache-dit."""
OFF = {
    *("lora", "extra_params", "layers", "system_prompt", "bot_task", "diffusers_kwargs", "enhance_prompt", "rollout"),
    *("enable_upscaling", "upscaling_model_path", "upscaling_scale", "flow_shift", "progressive_mode"),
}
"""What others can do and this service cannot. Switched off it changes nothing; else it is refused by name."""
_NOTHING: tuple[Any, ...] = (False, 0, "", "false", "0", "none", "null", {}, [])


def validated(kind: type[Fields], fields: Mapping[str, Any], read: Callable[[str, Any, Any], Any] = check) -> Fields:
    """A request of this kind. read: makes a value of a name, of what was sent and of a type. RequestError that names
    the parameter."""
    ours, called, unused = in_our_names(fields)
    hints = {option.name: option.hint for option in options_of(kind)}
    for field, value in ours.items():
        name = called.get(field, field)[:60]
        if field not in hints:
            message = unknown("parameter", name, [*hints, *ALIASES, "width", "height"])
            raise RequestError(400, message, name, "unknown_parameter")
        try:
            ours[field] = read(name, value, hints[field])
        except ValueError as error:
            raise RequestError(400, str(error), name, "invalid_value") from None
    if "prompt" not in ours:
        raise RequestError(400, "prompt is missing; say what to show", "prompt", "invalid_value")
    make: Callable[..., Fields] = kind
    return make(**ours, ignored=tuple(unused))


def in_our_names(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Fields under our names, without those that are null or not used; by our names those that the caller used; and
    what is not used. RequestError for a field that is given twice, and for a width without a height."""
    ours: dict[str, Any] = {}
    called: dict[str, str] = {}
    unused: list[str] = []
    off = [name for name, value in fields.items() if name in OFF and value is not None and _is_nothing(value)]
    given = {name: value for name, value in fields.items() if value is not None and name not in off}
    _no_rival(given, "size", "width", "height")
    for name, value in given.items():
        ours_name = ALIASES.get(name, name)
        if name in UNUSED or "cache_dit" in name:
            unused.append(name)
        elif name not in ("width", "height"):
            if name in ALIASES:
                _no_rival(given, ours_name, name)
            ours[ours_name], called[ours_name] = value, name
    if "width" in given or "height" in given:
        ours["size"], called["size"] = _size(given), "width"
    return ours, called, unused + off


def _size(given: Mapping[str, Any]) -> str:
    for name in ("width", "height"):
        if not str(given.get(name, "")).isdecimal():
            got = f"got {str(given[name])[:60]!r}" if name in given else f"got no {name}"
            raise RequestError(400, f"width and height are whole numbers of pixels, {got}", name, "invalid_value")
    return f"{given['width']}x{given['height']}"


def _no_rival(given: Mapping[str, Any], name: str, *others: str) -> None:
    """RequestError where a field is given under several names."""
    for other in others:
        if name in given and other in given:
            raise RequestError(400, f"give {name} or {other}, not both", other, "invalid_value")


def _is_nothing(value: Any) -> bool:
    return (value.strip().lower() if isinstance(value, str) else value) in _NOTHING
