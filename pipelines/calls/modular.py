"""Modular pipelines: the loop of their blocks, and their guiders."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from types import SimpleNamespace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines.modular_pipeline import (
    LoopSequentialPipelineBlocks,
    ModularPipeline,
)
from torch import Tensor

from ttsnap.pipelines.calls.parts import guiders_of, is_guider
from ttsnap.pipelines.calls.pictures import FIELDS
from ttsnap.pipelines.quiet import quiet

# --- The call of a modular pipeline: a tree of blocks with a loop in it ---------------------------
# First latents are put in where the loop begins, since blocks of many kinds draw them.

TREE = "_blocks"
"""The attribute of modular pipelines with their blocks."""
LATENTS = ("latents", "audio_latents")
"""Values in the state of a call that a loop begins with."""
SOUND = "audio"
LOGGER = "diffusers.modular_pipelines.modular_pipeline"
"""The logger that prints the traceback of what blocks raise, which is raised anyway."""


Asking: TypeAlias = Callable[[Callable[[], Any]], Callable[[], Any]]
_INPUTS: MutableMapping[Any, list[Any]] = WeakKeyDictionary()
"""Of trees of blocks, which pipelines show in copies alone, so that no user changes them."""


def is_modular(kind: type[Any]) -> bool:
    """Whether pipelines of this class are sequences of blocks."""
    return issubclass(kind, ModularPipeline)


def called(pipe: Any, **given: Any) -> Any:
    """The stock call of a modular pipeline. It returns what was made by name, as others do."""
    state = type(pipe).stock_class().__call__(pipe, **given)
    made = {name: state.get(name) for name in (*FIELDS, SOUND)}
    return SimpleNamespace(**{name: value for name, value in made.items() if value is not None})


def inputs_of(pipe: Any) -> list[Any]:
    """The inputs of a pipeline's blocks, to find which takes longer than the rest of a call."""
    blocks = vars(pipe)[TREE]
    if blocks not in _INPUTS:
        _INPUTS[blocks] = blocks.inputs
    return _INPUTS[blocks]


def begun_by(pipe: Any, asking: Asking) -> Any:
    """A copy of a pipeline's tree of blocks, whose loops ask what latents to begin with.

    asking: makes of a function that returns the loop's own one that asks.
    """
    tree = _begun_by(vars(pipe)[TREE], asking)
    kind: Any = type(tree)
    tree.__class__ = _knowing_class(kind)
    tree.known_inputs = inputs_of(pipe)
    return tree


def _begun_by(blocks: Any, asking: Asking) -> Any:
    twin = copy.copy(blocks)
    own: Any = type(blocks)
    kind = _graded_class(own)
    twin.__class__ = kind
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        twin.__class__ = _loop_class(kind)
        twin.asking = asking
        twin._progress_bar_config = {"disable": True}
    if blocks.sub_blocks:
        inside = {name: _begun_by(block, asking) for name, block in blocks.sub_blocks.items()}
        twin.sub_blocks = type(blocks.sub_blocks)(inside)
    return twin


@functools.cache
def _graded_class(kind: Any) -> Any:
    """A class of blocks without `torch.no_grad` around each: a frame says what has a graph."""
    own = {"__module__": kind.__module__, "__call__": inspect.unwrap(kind.__call__)}
    return type(kind.__name__, (kind,), own)


@functools.cache
def _knowing_class(kind: Any) -> Any:
    """A class of trees whose inputs are known."""
    known = property(lambda tree: tree.known_inputs)
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "inputs": known})


@functools.cache
def _loop_class(kind: Any) -> Any:
    """A class of loops that ask for their first latents."""

    def call(self: Any, components: Any, state: Any) -> Any:
        for name in LATENTS:
            if isinstance(made := state.get(name), Tensor):
                state.set(name, self.asking(_drawn(kind, name, made))())
        return kind.__call__(self, components, state)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__call__": call})


def _drawn(kind: Any, name: str, made: Tensor) -> Callable[[], Tensor]:
    """A function that returns the latents of a loop, and has the name of their place."""

    def draw() -> Tensor:
        return made

    draw.__name__ = f"{kind.__name__}.{name}"
    return draw


# --- The guiders of a modular pipeline, and the arguments of a call that set them -----------------

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
