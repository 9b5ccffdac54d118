"""The guiders of a modular pipeline, and the arguments of a call that set them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.guiders.guider_utils import BaseGuidance

from ttsnap.pipelines.calls.parts import guiders_of, is_guider
from ttsnap.pipelines.quiet import quiet

PLACES = {"guider": ("", ""), "guider_2": ("", "_2"), "audio_guider": ("audio_", "")}
"""The prefix and suffix of the arguments that set a guider: guidance_scale_2."""
EXPERIMENTAL = "diffusers.guiders.guider_utils"
"""The logger that warns at every guider that guiders are experimental."""
SCALE = "guidance_scale"


def puts_hooks(part: Any) -> bool:
    """Whether a part is a guider that hooks the network's layers around some of its calls."""
    return is_guider(part) and type(part).cleanup_models is not BaseGuidance.cleanup_models


def settings(pipe: Any) -> dict[str, tuple[str, str]]:
    """The arguments of a call that set guiders, each with the guider and its setting.

    Examples: guidance_scale, guidance_scale_2 for the second expert, audio_guidance_scale.
    """
    found = {}
    for name, guider in _guiders(pipe).items():
        before, after = PLACES[name]
        for setting in _own_settings(guider):
            found[f"{before}{setting}{after}"] = name, setting
    return found


def set_by(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """New guiders of a pipeline, by name, with what arguments of a call set.

    guidance_scale is that of both experts unless guidance_scale_2 is given. It enables a disabled
    guider.
    """
    known = settings(pipe)
    given = {name: value for name, value in call.items() if name in known and value is not None}
    if SCALE in given and f"{SCALE}_2" in known:
        given = {f"{SCALE}_2": given[SCALE], **given}
    changes: dict[str, dict[str, Any]] = {}
    for argument, value in given.items():
        name, setting = known[argument]
        change = changes.setdefault(name, {})
        change[setting] = value
        if setting == SCALE:
            change["enabled"] = True
    with quiet(EXPERIMENTAL):
        guiders = _guiders(pipe)
        return {name: guiders[name].new(**change) for name, change in changes.items()}


def _guiders(pipe: Any) -> dict[str, Any]:
    found = guiders_of(pipe.components)
    return {name: found[name] for name in PLACES if name in found}


def _own_settings(guider: Any) -> list[str]:
    """The names of a guider's numbers: scales, and the steps that it guides."""
    return [name for name in guider.config if not name.startswith("_") and name != "enabled"]
