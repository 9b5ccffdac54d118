"""Schedulers in frames: they stop where they step, remember what their steps need, and lead a frame to
a later step."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ttsnap.pipelines.calls.joining import PartArguments
from ttsnap.pipelines.calls.parts import Parts
from ttsnap.pipelines.calls.stock_call import StockCall, Told
from ttsnap.pipelines.calls.stops import Drawn, PartCall, Step, Stepped
from ttsnap.pipelines.calls.values import Fields, mapped, size_of
from ttsnap.pipelines.suspended import Ask

# --- Schedulers that a stock call hands what they made a step before, as ones that keep it
# themselves
# CogVideoX's DPM solver is of two steps and has no history: its call gives each step the last x0
# estimate.

GIVEN = ("old_pred_original_sample", "timestep_back")
"""The arguments of a step with what a step made before it, and at which timestep."""


def remembering(scheduler: Any) -> Any:
    """A scheduler over the same inside that keeps GIVEN; itself where its step takes none of it.

    It has made no step.
    """
    if not set(GIVEN) <= inspect.signature(scheduler.step).parameters.keys():
        return scheduler
    own = copy.copy(scheduler)
    if GIVEN[0] not in vars(own):
        kind: Any = type(scheduler)
        own.__class__ = _kind(kind)
    vars(own).update(dict.fromkeys(GIVEN))
    return own


@functools.cache
def _kind(kind: Any) -> Any:
    """The class of schedulers of this one that keep GIVEN."""

    @functools.wraps(kind.step)  # by whose signature stock calls give arguments
    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        before = {name: vars(self)[name] for name in GIVEN}
        given = {
            "timestep": timestep,
            "sample": sample,
            "eta": eta,
            "generator": generator,
            **before,
        }
        moved, estimate = kind.step(self, model_output, return_dict=False, **given)
        vars(self).update(zip(GIVEN, (estimate, timestep), strict=True))
        if not return_dict:
            return moved, estimate
        return DDIMSchedulerOutput(prev_sample=moved, pred_original_sample=estimate)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "step": step})


# --- What a call makes between the steps of one round, of latents that are known at its end alone -
# LTX-2 steps its video and then its sound, and a search steps both at once. Until then the call goes
# on with stand-ins. What it has made of them, as where it puts a given first frame before the others,
# is made again of the latents.


class Between(TorchDispatchMode):
    """Sees the operators of the thread that enters it, and keeps those that read a stand-in."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.stand_ins: list[Tensor] = []
        self._made: list[tuple[Any, Any, Any, Any]] = []
        """The operator, its arguments and what it made, of each that read a stand-in."""
        self._read = set[int]()
        """The memory of stand-ins, and of what was made of them."""

    def stand_in(self, sample: Tensor) -> Tensor:
        """In the place of the latents that a step makes of these."""
        self.stand_ins.append(sample.clone())
        self._read |= _memory(self.stand_ins[-1:])
        return self.stand_ins[-1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if self._read & _memory(tree_leaves((args, kwargs))):
            self._read |= _memory(tree_leaves(made))
            self._made.append((func, args, kwargs, made))
        return made

    def settle(self, latents: Sequence[Tensor]) -> None:
        """Write latents into their stand-ins, and make again what was made of these."""
        for stand_in, moved in zip(self.stand_ins, latents, strict=False):
            stand_in.copy_(moved)
        for func, args, kwargs, made in self._made:
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and not _memory([old]) & _memory([new]):
                    old.copy_(new)


def _memory(values: Iterable[Any]) -> set[int]:
    """Where tensors are kept, which views share."""
    return {value.untyped_storage()._cdata for value in values if isinstance(value, Tensor)}


# --- How a frame is led to a later step: it answers itself until the call waits for its latents
# there
#     led to 2:   Drawn  PartCall  Step  PartCall  Step     PartCall  Step     ...
#     answered    by itself ........................ asks    asks      asks
#
# A round of the loop is one question. Where it steps several fields, latents are put in at the first,
# from which the others have theirs. Guided outputs are known at the last. Until then steps leave
# latents as they are, or return stand-ins for them.


class Led:
    """What a stock call asks by. to: the index of the latents that it first waits for."""

    def __init__(self, stock: StockCall, parts: Parts, to: int, ask: Ask) -> None:
        self.stock = stock
        self.parts = parts
        self.to = to
        self.ask = ask
        self.schedulers = list[Any]()
        """That ask by it."""
        self.index = 0
        """Rounds begun."""
        self._round = list[Step]()
        """Steps of the round that is under way."""
        self._given = list[Tensor]()
        """The latents of all fields that were put in last."""
        self._dummies: dict[Hashable, Any] = {}
        """What answered for parts, by what their results' shapes follow from in one call."""
        self._between: Between | None = None
        """What sees the operators of the round, from its first step to its last."""

    def __call__(self, question: Any) -> Any:
        if isinstance(question, Drawn):
            return self._drawn(question)
        if isinstance(question, PartCall):
            return self._called(question)
        if self.stock.fields is None:
            self.index += 1
            return self.ask(question)
        return self._stepped(question, self.stock.fields)

    def _called(self, call: PartCall) -> Any:
        stock = self.stock
        later = stock.asleep if self.index else frozenset()
        does_without = stock.networks if self.index < self.to else later
        if call.part in does_without:
            return self._dummy(call)
        return self.ask(call._replace(begun=self.index > 0))

    def _dummy(self, call: PartCall) -> Any:
        """In the place of what a part makes."""
        stock = self.stock
        rowed = stock.rowed(call.part)
        arguments = PartArguments(call.args, call.kwargs, stock.width, rowed=rowed)
        key = call.part, call.method, size_of(arguments.input)
        if key not in self._dummies:
            part = stock.real(call, self.parts)
            self._dummies[key] = stock.dummies.of_images(part, call, arguments)
        return mapped(self._dummies[key], torch.clone)

    def _drawn(self, question: Drawn) -> Any:
        if self.to > 0:
            return question.made
        if self.stock.fields is None:
            return self.ask(question)
        if question.field == 0:
            latents = self.ask(question)
            self._given = [] if latents is None else self.stock.fields.parted(latents)
        return self._given[question.field] if self._given else question.made

    def _stepped(self, step: Step, fields: Fields) -> Tensor:
        """The latents of one field after its step: until the call is where it is led, what was put
        in there, and from then on what the search makes of all fields of a round."""
        if not self._round:
            self.index += 1
        self._round.append(step)
        steps = self._round
        ends = len(steps) == fields.count
        if ends:
            self._round = []
        if self.index < self.to:
            return step.sample
        if self.index > self.to:
            return self._moved(steps, fields) if ends else self._unmoved(step, fields)
        if len(steps) == 1:  # the first step of the round asks for the latents of all fields
            self._given = fields.parted(self.ask(step))
        return self._given[len(steps) - 1]

    def _unmoved(self, step: Step, fields: Fields) -> Tensor:
        """What a step makes before the last of its round is known."""
        if not fields.late:
            return step.sample
        if self._between is None:
            self._between = Between()
            self._between.__enter__()
        return self._between.stand_in(step.sample)

    def _moved(self, steps: Sequence[Step], fields: Fields) -> Tensor:
        """What the last step of a round makes, with which those before it are known."""
        between = self._between
        self._between = None
        if between is not None:
            between.__exit__(None, None, None)
        parts = fields.parted(self.ask(_joined(fields, steps)))
        if between is not None:
            between.settle(parts)
        return parts[-1]


def _joined(fields: Fields, steps: Sequence[Step]) -> Step:
    """The steps of a round as one."""
    out = fields.joined([step.out for step in steps])
    sample = fields.joined([step.sample for step in steps])
    return steps[0]._replace(out=out, sample=sample)


# --- Copies of schedulers that ask what their steps make, and say what a frame is told ------------
# A scheduler keeps at which step it is, and a stock call may copy it. So each copy counts its steps,
# and a copy of it goes on from there.

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
        self.scheduler = scheduler
        self.stock = stock
        self.ask = ask
        self.index = index
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
        own = self.scheduler
        told = self.stock.told
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
    set_timesteps = own.set_timesteps
    add_noise = getattr(own, "add_noise", None)

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
