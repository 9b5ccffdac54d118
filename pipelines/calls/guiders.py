"""The guiders of a modular pipeline, and the arguments of a call that set them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.guiders.guider_utils import BaseGuidance

from ttsnap.pipelines.quiet import quiet

PLACES = {"guider": ("", ""), "guider_2": ("", "_2"), "audio_guider": ("audio_", "")}
"""The prefix and suffix of the arguments that set a guider: guidance_scale_2."""
EXPERIMENTAL = "diffusers.guiders.guider_utils"
"""The logger that warns at every guider that guiders are experimental."""
SCALE = "guidance_scale"


def is_guider(part: Any) -> bool:
    """Whether a part of a pipeline is a guider, which keeps the step of a call, and perhaps results of earlier ones."""
    return hasattr(part, "set_state") and hasattr(part, "prepare_inputs")


def puts_hooks(part: Any) -> bool:
    """Whether a part of a pipeline is a guider that hooks the network's layers around some of its calls."""
    return is_guider(part) and type(part).cleanup_models is not BaseGuidance.cleanup_models


def settings(pipe: Any) -> dict[str, tuple[str, str]]:
    """The arguments of a call that set the pipeline's guiders, each with the guider and its setting.

    Examples: guidance_scale, guidance_scale_2 for the second expert, audio_guidance_scale.
    """
    return {
        f"{before}{setting}{after}": (name, setting)
        for name, guider in _guiders(pipe).items()
        for before, after in [PLACES[name]]
        for setting in _own_settings(guider)
    }


def set_by(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """New guiders of a pipeline, by name, with what arguments of a call set.

    guidance_scale is that of both experts unless guidance_scale_2 is given, and enables a disabled guider.
    """
    known = settings(pipe)
    given = {name: value for name, value in call.items() if name in known and value is not None}
    if SCALE in given and f"{SCALE}_2" in known:
        given = {f"{SCALE}_2": given[SCALE], **given}
    changes: dict[str, dict[str, Any]] = {name: {} for name in _guiders(pipe)}
    for argument, value in given.items():
        name, setting = known[argument]
        changes[name][setting] = value
    with quiet(EXPERIMENTAL):
        return {name: getattr(pipe, name).new(**_enabled(change)) for name, change in changes.items() if change}


def _enabled(change: Mapping[str, Any]) -> dict[str, Any]:
    return {"enabled": True, **change} if SCALE in change else dict(change)


def _guiders(pipe: Any) -> dict[str, Any]:
    return {name: getattr(pipe, name) for name in PLACES if is_guider(getattr(pipe, name, None))}


def _own_settings(guider: Any) -> list[str]:
    """The names of a guider's numbers: scales, and the steps that it guides."""
    return [name for name in guider.config if not name.startswith("_") and name != "enabled"]
