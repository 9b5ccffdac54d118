"""Copies of schedulers that ask what their steps make, and say what a frame is told.

A scheduler keeps at which step it is, and a stock call may copy it. So each copy counts its steps,
and a copy of it goes on from there. The methods are those of a class: set on a scheduler they would
hold it, and only the cycle collector would free its tensors.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ttsnap.pipelines.calls.asking import class_like
from ttsnap.pipelines.calls.histories import GIVEN
from ttsnap.pipelines.calls.questions import Step, Stepped
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.suspended import Ask

POSITION = "_step_index"
"""The attribute of most schedulers with the step at which they are."""
FRAME, TAKEN = "_frame", "_steps_taken"
"""Attributes of a frame's scheduler: what it knows of its frame, and how often it has stepped."""
WHOLE = "_whole"
"""The attribute of a frame's scheduler with whether its own timesteps are whole numbers."""


class _Frame(NamedTuple):
    """What a scheduler knows of its frame, as do copies of it."""

    stock: StockCall
    ask: Ask

    def __deepcopy__(self, memo: Any) -> _Frame:
        return self


def stepping(scheduler: Any, stock: StockCall, ask: Ask) -> Any:
    """A copy of a scheduler that asks what its steps make, as do copies of it."""
    own, kind, told = copy.deepcopy(scheduler), type(scheduler), stock.told is not None
    own.__class__ = _stepping_class(kind, scaled=stock.scaled is not None, told=told)
    vars(own).update({FRAME: _Frame(stock, ask), TAKEN: 0})
    return own


def stock_scheduler(scheduler: Any) -> Any:
    """A frame's scheduler as diffusers made it, with its timesteps set and no step taken."""
    own = copy.copy(scheduler)
    own.__class__ = type(scheduler).__base__
    for name in (FRAME, TAKEN, WHOLE):
        vars(own).pop(name, None)
    if hasattr(own, POSITION):
        setattr(own, POSITION, None)
    return own


def about_to_step(scheduler: Any, position: int) -> Any:
    """A copy of a scheduler that steps from this position next."""
    own = copy.deepcopy(scheduler)
    if hasattr(own, POSITION):
        setattr(own, POSITION, position)
    if hasattr(own, "is_scale_input_called"):
        own.is_scale_input_called = True
    return own


@functools.cache
def _stepping_class(kind: Any, *, scaled: bool, told: bool) -> Any:
    """A class of schedulers whose steps ask."""

    def instead(method: Callable[..., Any]) -> Callable[..., Any]:
        stock = getattr(kind, method.__name__)

        @functools.wraps(stock)  # with its signature, which pipelines read
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(stock, self, vars(self)[FRAME], *args, **kwargs)

        return call

    methods = [step, *[scale_model_input] * scaled, *[set_timesteps, add_noise] * told]
    found = {each.__name__: instead(each) for each in methods if hasattr(kind, each.__name__)}
    return class_like(kind, found)


# --- in the place of a scheduler's methods --------------------------------------------------------


def step(
    stock: Any, own: Any, frame: _Frame, *args: Any, return_dict: bool = True, **kwargs: Any
) -> Any:
    """Ask what it makes."""
    names = [name for name in inspect.signature(stock).parameters if name != "return_dict"]
    given, told = dict(zip(names[1:], args, strict=False)) | kwargs, frame.stock.told
    if told is None and getattr(own, POSITION, 0) is None:
        _begin_stepping(own, given["timestep"])
    out, time, sample = (given.pop(name) for name in ("model_output", "timestep", "sample"))
    more = {name: value for name, value in given.items() if name not in GIVEN}
    moved = frame.ask(Step(out, time, sample, more, own))
    vars(own)[TAKEN] += 1
    if hasattr(own, POSITION):
        at = vars(own)[TAKEN] if told is not None else getattr(own, POSITION) + 1
        setattr(own, POSITION, at)
    return Stepped(moved) if return_dict else (moved, moved)


def scale_model_input(
    stock: Any, own: Any, frame: _Frame, sample: Tensor, timestep: Any = None
) -> Tensor:
    """As the call scales latents."""
    assert frame.stock.scaled is not None
    return frame.stock.scaled(sample, vars(own)[TAKEN])


def set_timesteps(stock: Any, own: Any, frame: _Frame, *args: Any, **kwargs: Any) -> None:
    """Say those that it is told."""
    stock(own, *args, **kwargs)
    told = frame.stock.told
    assert told is not None
    vars(own)[WHOLE] = not own.timesteps.is_floating_point()
    own.timesteps = told.times.to(own.timesteps.device)
    own.num_inference_steps = len(told.times)
    if told.sigmas is not None:
        own.sigmas = told.sigmas.to(own.sigmas.device)


def add_noise(
    stock: Any, own: Any, frame: _Frame, samples: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Round the timesteps that it is told where its own are whole: it knows no others."""
    near = timesteps.round().long() if vars(own).get(WHOLE) else timesteps
    added: Tensor = stock(own, samples, noise, near)
    return added


def _begin_stepping(own: Any, timestep: Any) -> None:
    """Put a scheduler to the position of its first step, by its own method if it has one."""
    if hasattr(own, "_init_step_index"):
        own._init_step_index(timestep)
    elif own._begin_index is not None:
        setattr(own, POSITION, own._begin_index)
    elif hasattr(own, "index_for_timestep"):
        setattr(own, POSITION, own.index_for_timestep(timestep))
    else:  # as Helios's, which reads no position
        setattr(own, POSITION, 0)
