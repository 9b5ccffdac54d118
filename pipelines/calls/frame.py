"""One stock call of a pipeline under way, which stops at its latents, its networks and its scheduler's steps.

    frame = stock.begin(generator)    # stops where its first latents are drawn
    frame.go_on(x)                    # x are its latents at this step; it stops where it calls a network

The pipeline object is a copy. Its parts are copies of the outer objects alone, over the same weights. So nothing that
a frame sets shows in the user's pipeline, and a part that is called asks for its answer.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ttsnap.pipelines.calls.dummies import Dummies, mapped
from ttsnap.pipelines.calls.questions import Drawn, LatentsPlace, PartCall, Question, Step, Stepped
from ttsnap.pipelines.denoiser import ENCODING
from ttsnap.pipelines.suspended import Ask, Suspended

METHODS = ("__call__", "encode", "decode")
"""Of parts: those that ask."""
LATENTS = "prepare_latents"
"""The method of pipelines that draws the first latents."""
ENCODES = ("encode_prompt", "encode_image")
"""Methods of pipelines whose results frames of one prompt share."""
Parts: TypeAlias = Mapping[str, nn.Module]
"""Parts of a pipeline, by name."""


@dataclass(frozen=True)
class StockCall:
    """The stock call of a pipeline, for one prompt: what frames are begun of."""

    pipe: Any
    """A pipeline object of this call alone."""
    function: Callable[..., Any]
    """The stock `__call__`."""
    arguments: Mapping[str, Any]
    place: LatentsPlace | None = None
    """None in a rehearsal, which finds it."""
    times: Tensor | None = None
    """Timesteps in the place of the scheduler's; None: its own."""
    scaled: Callable[[Tensor, int], Tensor] | None = None
    """The network's input of latents at an index; None: what the scheduler makes of them."""
    networks: frozenset[str] = frozenset()
    """The parts that denoise, which a frame that is led to a later step does without."""
    dummies: Dummies = field(default_factory=Dummies)
    """What these answer there."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What methods in ENCODES and encoders returned, by their arguments."""

    def begin(self, generator: torch.Generator, parts: Parts | None = None, index: int = 0) -> CallFrame:
        """A frame, which stops where it waits for its latents at this index: at 0 where its first ones are drawn.

        parts: in the place of the pipeline's.
        """
        return CallFrame(self, generator, parts or {}, index)

    def keep(self, what: tuple[str, ...], args: Any, kwargs: Any, make: Callable[..., Any]) -> Any:
        """What `make` makes of these arguments, made once for equal ones. Stock calls change lists that they are given,
        so that each gets lists of its own."""
        key = (*what, frozen(args), frozen(kwargs))
        if key not in self.kept:
            self.kept[key] = make(*args, **kwargs), (args, kwargs)  # held, since the key has their ids
        return mapped(self.kept[key][0], lambda tensor: tensor)

    def real(self, name: str, parts: Parts) -> nn.Module:
        """The part of this name that answers."""
        return parts[name] if name in parts else self.modules[name]

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that ask, by name."""
        found = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        found.pop("safety_checker", None)
        return found

    @functools.cached_property
    def schedulers(self) -> dict[str, Any]:
        """The schedulers, by name."""
        return {name: part for name, part in self.pipe.components.items() if is_scheduler(part)}


def is_guider(part: Any) -> bool:
    """Whether a part of a pipeline is a guider, which keeps the step of a call, and perhaps results of earlier ones."""
    return hasattr(part, "set_state") and hasattr(part, "prepare_inputs")


def stock_scheduler(scheduler: Any) -> Any:
    """A frame's scheduler as diffusers made it, with its timesteps set and no step taken."""
    own = copy.copy(scheduler)
    for name in ("step", "scale_model_input", "set_timesteps"):
        vars(own).pop(name, None)
    if hasattr(own, "_step_index"):
        own._step_index = None
    return own


def is_scheduler(part: Any) -> bool:
    """Whether a part of a pipeline is a scheduler."""
    return hasattr(part, "step") and hasattr(part, "set_timesteps")


class CallFrame:
    """One stock call under way. It ends with the last reference to it."""

    def __init__(self, stock: StockCall, generator: torch.Generator, parts: Parts, index: int = 0) -> None:
        self.stock, self.parts, self._steps = stock, parts, max(0, index - 1)
        self._call = Suspended(functools.partial(_program, stock, generator, parts, index))

    @property
    def question(self) -> Question:
        """What it waits for."""
        asked: Question = self._call.question
        return asked

    @property
    def index(self) -> int:
        """The index of the latents that it waits for, or that are under way: 0 before its first step."""
        return self._steps + isinstance(self.question, Step)

    def go_on(self, latents: Tensor) -> None:
        """Let it go on with these as its latents at `index`."""
        self._steps = self.index
        self._call.answer(latents)

    def answer(self, value: Any) -> None:
        """Let it go on with what a part returns."""
        self._call.answer(value)

    def real(self, part: str) -> Any:
        """The part of this name that answers."""
        return self.stock.real(part, self.parts)

    def close(self) -> None:
        """End it."""
        self._call.close()


@dataclass
class _Led:
    """What a stock call asks by: it answers itself until the call waits for its latents at index `to`."""

    stock: StockCall
    parts: Parts
    to: int
    ask: Ask
    index: int = 0

    def __call__(self, question: Any) -> Any:
        self.index += isinstance(question, Step)
        if self.index >= self.to:
            return self.ask(question)
        if isinstance(question, Drawn):
            return question.made
        if isinstance(question, Step):
            return question.sample
        if question.part not in self.stock.networks:
            return self.ask(question)
        return self.stock.dummies.of(self.stock.real(question.part, self.parts), question)


def _program(stock: StockCall, generator: torch.Generator, parts: Parts, index: int, asks: Ask) -> Any:
    """The stock call, whose parts ask."""
    pipe, ask = copy.copy(stock.pipe), _Led(stock, parts, index, asks)
    methods = {name: _keeping(stock, getattr(pipe, name)) for name in ENCODES if hasattr(pipe, name)}
    if hasattr(pipe, LATENTS):
        methods[LATENTS] = _drawing(stock.place, getattr(pipe, LATENTS), ask)
    if hasattr(pipe, "run_safety_checker"):
        vars(pipe)["safety_checker"] = None  # finished images are checked where they go to people
    vars(pipe).update(
        methods,
        maybe_free_model_hooks=_nothing,  # other frames are under way
        _progress_bar_config={"disable": True},
        _internal_dict=copy.copy(vars(pipe).get("_internal_dict")),
        **{name: _asking(name, stock.real(name, parts), ask) for name in stock.modules},
        **{name: _stepping(scheduler, stock, ask) for name, scheduler in stock.schedulers.items()},
        **{name: copy.deepcopy(part) for name, part in stock.pipe.components.items() if is_guider(part)},
    )
    with torch.no_grad():  # a new thread does not inherit it
        return stock.function(pipe, **_own(dict(stock.arguments)), generator=generator)


def _own(value: Any) -> Any:
    """Arguments of which a stock call may change arrays in place, as Kandinsky does with masks."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return list(map(_own, value))
    if isinstance(value, dict):
        return {name: _own(inside) for name, inside in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def _nothing() -> None:
    """In the place of what a stock call does at its end to parts that frames share."""


def _keeping(stock: StockCall, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose results are kept for equal arguments."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with ENCODING:
            return stock.keep((method.__name__,), args, kwargs, method)

    return call


def frozen(value: Any) -> Any:
    """A value as a key: tensors and plain ones by what they are, others by who they are."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return value.shape, value.dtype, hashlib.blake2b(data, digest_size=16).digest()
    if isinstance(value, list | tuple):
        return type(value), tuple(map(frozen, value))
    if isinstance(value, dict):
        return tuple((name, frozen(inside)) for name, inside in value.items())
    plain = str | bool | int | float | None | torch.dtype | torch.device
    return (type(value), value) if isinstance(value, plain) else (type(value), id(value))


def _drawing(place: LatentsPlace | None, method: Callable[..., Any], ask: Ask) -> Callable[..., Any]:
    """`prepare_latents`, which asks what the call is to begin with."""
    calls = 0

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        made = method(*args, **kwargs)
        if place is None:  # a rehearsal finds it
            return ask(Drawn(calls, made))
        if place.call != calls:
            return made
        if place.entry is None:
            return ask(Drawn(calls, made))
        before, after = made[: place.entry], made[place.entry + 1 :]
        return (*before, ask(Drawn(calls, made[place.entry])), *after)

    return call


def _asking(name: str, part: Any, ask: Ask) -> Any:
    """A copy of the outer object of a part, over the same inside, whose METHODS ask."""
    kind = type(part)

    def asks(method: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return ask(PartCall(name, method, args, kwargs))

        return functools.wraps(getattr(kind, method))(call)

    methods = {method: asks(method) for method in METHODS if hasattr(kind, method)}
    twin: Any = object.__new__(type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods}))
    vars(twin).update(vars(part))
    return twin


def _stepping(scheduler: Any, stock: StockCall, ask: Ask) -> Any:
    """A copy of a scheduler that asks what its steps make."""
    own = copy.deepcopy(scheduler)
    names = [name for name in inspect.signature(own.step).parameters if name != "return_dict"]
    index = 0

    def step(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        nonlocal index
        given = dict(zip(names, args, strict=False)) | kwargs
        if stock.times is None and getattr(own, "_step_index", 0) is None:
            own._init_step_index(given["timestep"])
        out, time, sample = (given.pop(name) for name in ("model_output", "timestep", "sample"))
        moved = ask(Step(out, time, sample, given, own))
        index += 1
        if hasattr(own, "_step_index"):
            own._step_index = index if stock.times is not None else own._step_index + 1
        return Stepped(moved) if return_dict else (moved, moved)

    own.step = functools.wraps(own.step)(step)  # pipelines read its signature
    if (scaled := stock.scaled) is not None:
        own.scale_model_input = lambda sample, timestep=None: scaled(sample, index)
    if (times := stock.times) is not None:
        set_timesteps = own.set_timesteps

        def retimed(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            own.timesteps, own.num_inference_steps = times.to(own.timesteps.device), len(times)

        own.set_timesteps = functools.wraps(set_timesteps)(retimed)
    return own
