"""The call of a modular pipeline: a tree of blocks with a loop in it.

First latents are put in where the loop begins, since blocks of many kinds draw them.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, MutableMapping
from types import SimpleNamespace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from diffusers.modular_pipelines.modular_pipeline import (
    LoopSequentialPipelineBlocks,
    ModularPipeline,
)
from torch import Tensor

from ttsnap.pipelines.calls.pictures import FIELDS

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
