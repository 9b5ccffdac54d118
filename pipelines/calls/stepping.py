"""Copies of schedulers that ask what their steps make, and say what a frame is told.

A scheduler keeps at which step it is, and a stock call may copy it. So each copy counts its steps,
and a copy of it goes on from there.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

from torch import Tensor

from ttsnap.pipelines.calls.histories import GIVEN
from ttsnap.pipelines.calls.led import Led
from ttsnap.pipelines.calls.questions import Step, Stepped
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.told import Told

POSITION = "_step_index"
"""The attribute of most schedulers with the step at which they are."""
WHOLE = "_whole"
"""The attribute of a frame's scheduler with whether its own timesteps are whole numbers."""
CHANGED = ("step", "scale_model_input", "set_timesteps", "add_noise", "__deepcopy__", WHOLE)
"""The attributes that a frame's scheduler has besides."""


def stepping(scheduler: Any, stock: StockCall, ask: Led) -> Any:
    """A copy of a scheduler that asks what its steps make, as do copies of it."""
    return _Steps(copy.deepcopy(scheduler), stock, ask, 0).scheduler


def stock_scheduler(scheduler: Any) -> Any:
    """A frame's scheduler as diffusers made it, with its timesteps set and no step taken."""
    own = copy.copy(scheduler)
    release(own)
    if hasattr(own, POSITION):
        setattr(own, POSITION, None)
    return own


def release(scheduler: Any) -> None:
    """Take out what a frame's scheduler has besides.

    Its methods hold it: nothing but the cycle collector would free its tensors.
    """
    for name in CHANGED:
        vars(scheduler).pop(name, None)


def about_to_step(scheduler: Any, position: int) -> Any:
    """A copy of a scheduler that steps from this position next."""
    own = copy.deepcopy(scheduler)
    if hasattr(own, POSITION):
        setattr(own, POSITION, position)
    if hasattr(own, "is_scale_input_called"):
        own.is_scale_input_called = True
    return own


class _Steps:
    """The steps of one scheduler of a frame."""

    def __init__(self, scheduler: Any, stock: StockCall, ask: Led, index: int) -> None:
        self.scheduler, self.stock, self.ask, self.index = scheduler, stock, ask, index
        parameters = inspect.signature(scheduler.step).parameters
        self._names = [name for name in parameters if name != "return_dict"]
        if "timestep" not in parameters:
            raise ValueError(
                f"step of {type(scheduler).__name__} hides its arguments, {self._names}, by which a"
                " search goes; name them, or decorate it by functools.wraps"
            )
        changes = {"step": _as(scheduler.step, self.step), "__deepcopy__": self.copied}
        if stock.scaled is not None:
            changes["scale_model_input"] = self.scale
        if stock.told is not None:
            changes |= _telling(scheduler, stock.told)
        vars(scheduler).update(changes)
        ask.schedulers.append(scheduler)

    def step(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """In the place of the scheduler's own."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        own, told = self.scheduler, self.stock.told
        if told is None and getattr(own, POSITION, 0) is None:
            _begin_stepping(own, given["timestep"])
        out, time, sample = (given.pop(name) for name in ("model_output", "timestep", "sample"))
        more = {name: value for name, value in given.items() if name not in GIVEN}
        moved = self.ask(Step(out, time, sample, more, own))
        self.index += 1
        if hasattr(own, POSITION):
            at = self.index if told is not None else getattr(own, POSITION) + 1
            setattr(own, POSITION, at)
        return Stepped(moved) if return_dict else (moved, moved)

    def scale(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """In the place of `scale_model_input`."""
        assert self.stock.scaled is not None
        return self.stock.scaled(sample, self.index)

    def copied(self, memo: dict[int, Any]) -> Any:
        """A copy of the scheduler, which asks as well."""
        own = self.scheduler
        twin = object.__new__(type(own))
        for name, value in vars(stock_scheduler(own)).items():
            vars(twin)[name] = copy.deepcopy(value, memo)
        for name in (POSITION, WHOLE):
            if name in vars(own):
                vars(twin)[name] = vars(own)[name]
        return _Steps(twin, self.stock, self.ask, self.index).scheduler


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


def _telling(own: Any, told: Told) -> dict[str, Any]:
    """Methods of a scheduler that say what it is told."""
    set_timesteps, add_noise = own.set_timesteps, getattr(own, "add_noise", None)

    def retimed(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        vars(own)[WHOLE] = not own.timesteps.is_floating_point()
        own.timesteps = told.times.to(own.timesteps.device)
        own.num_inference_steps = len(told.times)
        if told.sigmas is not None:
            own.sigmas = told.sigmas.to(own.sigmas.device)

    def noised(samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        # Those that are whole know no others.
        near = timesteps.round().long() if vars(own).get(WHOLE) else timesteps
        added: Tensor = add_noise(samples, noise, near)  # type: ignore[misc]
        return added

    changes = {"set_timesteps": _as(set_timesteps, retimed)}
    return changes if add_noise is None else {**changes, "add_noise": noised}


def _as(method: Any, other: Any) -> Any:
    """Another in the place of a method, with the signature of that, which pipelines read."""
    return functools.update_wrapper(functools.partial(other), method)
