"""The guiders of a modular pipeline: what guides its network, and in how many passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance, LTX2Guidance

from ttsnap.pipelines.quiet import quiet

OF_SOUND = "audio_guider"
"""The guider of a video's sound, which shares the passes of the video."""
USABLE = (ClassifierFreeGuidance, LTX2Guidance)
"""Guiders that keep nothing of rows of earlier batches."""
PLACES = {"guider": ("", ""), "guider_2": ("", "_2"), OF_SOUND: ("audio_", "")}
"""The prefix and suffix of the arguments that set a guider: guidance_scale_2."""
SETTINGS = ("guidance_scale", "guidance_rescale", "stg_scale", "modality_scale", "spatio_temporal_guidance_blocks")
"""The settings of guiders that a call may give."""
EXPERIMENTAL = "diffusers.guiders.guider_utils"
"""The logger that warns at every guider that guiders are experimental: only tested versions are accepted."""


def settings(pipe: Any) -> dict[str, tuple[str, str]]:
    """The arguments of a call that set the pipeline's guiders, each with the guider and its setting.

    Examples: guidance_scale, guidance_scale_2 for the second expert, audio_guidance_scale.
    """
    return {
        f"{before}{setting}{after}": (name, setting)
        for name, guider in _guiders(pipe).items()
        for before, after in [PLACES[name]]
        for setting in SETTINGS
        if setting in guider.config
    }


def parted(pipe: Any, call: Mapping[str, Any], inputs: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `settings` among the arguments of a call; the other arguments, and settings that its blocks read as well."""
    names = settings(pipe)
    given = {name: call[name] for name in names if call.get(name) is not None}
    return given, {name: value for name, value in call.items() if name not in names or name in inputs}


def own(pipe: Any, given: Mapping[str, Any], *, from_zero: bool = False) -> dict[str, Any]:
    """Copies of the pipeline's guiders for one call, since guiders keep a step and more.

    given: the call's `settings`. guidance_scale is that of both experts unless guidance_scale_2 is given, and enables a
    disabled guider. from_zero: whether a scale of 0 is no guidance, in place of 1. ValueError for guiders that search
    cannot use.
    """
    guiders = _guiders(pipe)
    for name, guider in guiders.items():
        kind: type[Any] = type(guider)
        if kind not in USABLE:
            raise ValueError(f"search cannot use {kind.__name__} as {name}, which may remember rows of earlier "
                             "batches; set ClassifierFreeGuidance")  # fmt: skip
        if (guider.config.start, guider.config.stop) != (0.0, 1.0):
            raise ValueError(f"{name} guides steps from {guider.config.start} to {guider.config.stop} alone, but "
                             "rows of a batch are at different steps; set start 0 and stop 1")  # fmt: skip
    changes: dict[str, dict[str, Any]] = {name: {} for name in guiders}
    if "guider_2" in guiders and "guidance_scale" in given:
        given = {"guidance_scale_2": given["guidance_scale"], **given}
    for argument, (name, setting) in settings(pipe).items():
        if argument in given:
            changes[name] |= {setting: given[argument]}
    for change in changes.values():
        if "guidance_scale" in change:
            change |= {"enabled": True, **({"use_original_formulation": True} if from_zero else {})}
    with quiet(EXPERIMENTAL):
        return {name: guider.new(**changes[name]) for name, guider in guiders.items()}


def passes(pipe: Any) -> int:
    """Forward passes of one evaluation. ValueError where that differs between steps."""
    guiders = _guiders(pipe)
    for guider in guiders.values():
        guider.set_state(step=0, num_inference_steps=1, timestep=torch.zeros(()))
    if OF_SOUND in guiders:  # video and sound share passes, and one is made where either guider needs it
        return len({name for guider in guiders.values() for name in guider.active_predictions()})
    each = {int(guider.num_conditions) for guider in guiders.values()}
    if len(each) > 1:
        raise ValueError("one of two experts is guided and the other is not, so that their steps differ in cost; set "
                         "guidance_scale, which is that of both, or give both guiders more than 1")  # fmt: skip
    return each.pop() if each else 1


def _guiders(pipe: Any) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if name.startswith("guider") or name == OF_SOUND}
