"""One stock call of a pipeline under way, which stops at its latents, its networks and its scheduler's steps.

    frame = stock.begin(generator)    # stops where its first latents are drawn
    frame.go_on(x)                    # x are its latents at this step; it stops where it calls a network

The pipeline object is a copy. Its parts are copies of the outer objects alone, over the same weights. So nothing that
a frame sets shows in the user's pipeline, and a part that is called asks for its answer.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ttsnap.pipelines.calls.dummies import Dummies, mapped
from ttsnap.pipelines.calls.fields import Fields
from ttsnap.pipelines.calls.guiders import is_guider
from ttsnap.pipelines.calls.joining import version_of
from ttsnap.pipelines.calls.loops import TREE, begun_by
from ttsnap.pipelines.calls.questions import Drawn, DrawnBy, LatentsPlace, PartCall, Question, Step, Stepped, permuted
from ttsnap.pipelines.denoiser import ENCODING
from ttsnap.pipelines.suspended import Ask, Suspended

ENCODE = "encode"
METHODS = ("__call__", ENCODE, "decode")
"""Of parts: those that ask."""
LATENTS = re.compile(r"prepare_(\w+_)?latents")
"""What methods of pipelines are called that may draw first latents."""
ENCODES = ("encode_prompt", "encode_image")
"""Methods of pipelines whose results frames of one prompt share."""
TOKENIZERS = (PreTrainedTokenizerBase, ProcessorMixin)
"""The kinds of parts that read prompts before encoders do."""
WHOLE = "_whole"
"""The attribute of a frame's scheduler with whether its own timesteps are whole numbers."""
Parts: TypeAlias = Mapping[str, nn.Module]
"""Parts of a pipeline, by name."""


@dataclass(frozen=True)
class Kept:
    """What was made of arguments."""

    made: Any
    arguments: Any
    """Held, since keys have their ids."""
    arrays: list[Tensor]
    """Those in them."""
    versions: list[int]

    def of(self, arrays: Sequence[Tensor]) -> bool:
        """Whether it was made of these, which are compared where they are: embeddings may have hundreds of MB."""
        pairs = zip(self.arrays, arrays, strict=True)
        return self.versions == list(map(version_of, self.arrays)) and all(torch.equal(*pair) for pair in pairs)


@dataclass(frozen=True)
class StockCall:
    """The stock call of a pipeline, for one prompt: what frames are begun of."""

    pipe: Any
    """A pipeline object of this call alone."""
    function: Callable[..., Any]
    """The stock `__call__`."""
    arguments: Mapping[str, Any]
    places: Sequence[LatentsPlace] | None = None
    """Where the first latents of each field come from. None in a rehearsal, which finds it."""
    fields: Fields | None = None
    """What a round steps, which is asked as one. None in a rehearsal, where each step asks by itself."""
    times: Tensor | None = None
    """Timesteps in the place of the scheduler's; None: its own."""
    sigmas: Tensor | None = None
    """Noise levels in the place of the scheduler's, beside `times`; None: its own."""
    scaled: Callable[[Tensor, int], Tensor] | None = None
    """The network's input of latents at an index; None: what the scheduler makes of them."""
    networks: frozenset[str] = frozenset()
    """The parts that denoise, which a frame that is led to a later step does without."""
    asleep: frozenset[str] = frozenset()
    """The parts that a frame does without at its end."""
    hooked: frozenset[str] = frozenset()
    """The parts in which the call puts hooks."""
    dummies: Dummies = field(default_factory=Dummies)
    """What networks and others answer where a frame does without them."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What methods in ENCODES and encoders returned, by their arguments but for what is in arrays."""

    def begin(self, generator: torch.Generator, parts: Parts | None = None, index: int = 0) -> CallFrame:
        """A frame, which stops where it waits for its latents at this index: at 0 where its first ones are drawn.

        parts: in the place of the pipeline's.
        """
        return CallFrame(self, generator, parts or {}, index)

    def keep(self, what: tuple[str, ...], args: Any, kwargs: Any, make: Callable[..., Any]) -> Any:
        """What `make` makes of these arguments, made once for equal ones. Stock calls change lists that they are given,
        so that each gets lists of its own."""
        given, entries = arrays_in((args, kwargs)), self.kept.setdefault((*what, frozen(args), frozen(kwargs)), [])
        found = next((entry for entry in entries if entry.of(given)), None)
        if found is None:
            found = Kept(make(*args, **kwargs), (args, kwargs), given, list(map(version_of, given)))
            entries.append(found)
        return mapped(found.made, lambda tensor: tensor)

    def encoded(self, call: PartCall, make: Callable[..., Any]) -> Any:
        """What `make` makes of a call of a part that does not denoise. It is kept where it is made before the first
        step, but for parts in whose hooks the call looks at more than their results."""
        if call.begun or call.part in self.hooked:
            return make(*call.args, **call.kwargs)
        return self.keep((call.part, call.method), call.args, call.kwargs, make)

    def real(self, call: PartCall, parts: Parts) -> nn.Module:
        """The part that answers a call. A preview VAE decodes alone, and pictures are encoded by the pipeline's own."""
        own = self.modules[call.part]
        return own if call.method == ENCODE else parts.get(call.part, own)

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments that the call takes."""
        return inspect.signature(self.function).parameters

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that ask, by name."""
        found = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        found.pop("safety_checker", None)
        return found

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Those of the call, by name. `encode_prompt` may set one, and is not called again for what it returned."""
        if TOKENIZERS not in self.kept:
            parts = self.pipe.components.items()
            self.kept[TOKENIZERS] = {name: _locked(part) for name, part in parts if isinstance(part, TOKENIZERS)}
        made: dict[str, Any] = self.kept[TOKENIZERS]
        return made

    @functools.cached_property
    def draw(self) -> list[str]:
        """The methods of the pipeline that may draw first latents."""
        return [name for name in dir(type(self.pipe)) if LATENTS.fullmatch(name)]

    @functools.cached_property
    def schedulers(self) -> dict[str, Any]:
        """The schedulers, by name."""
        return {name: part for name, part in self.pipe.components.items() if is_scheduler(part)}


def stock_scheduler(scheduler: Any) -> Any:
    """A frame's scheduler as diffusers made it, with its timesteps set and no step taken."""
    own = copy.copy(scheduler)
    for name in ("step", "scale_model_input", "set_timesteps", "add_noise", "__deepcopy__", WHOLE):
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
        self._to = index
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

    @property
    def spent(self) -> bool:
        """Whether no latents can be put in any more: where a round steps several fields, the others' steps have been
        answered before that of the last was known."""
        fields = self.stock.fields
        return fields is not None and fields.count > 1 and not fields.late and self.index > self._to

    def go_on(self, latents: Tensor | None) -> None:
        """Let it go on with these as its latents at `index`; None: with those that it draws."""
        self._steps = self.index
        self._call.answer(latents)

    def answer(self, value: Any) -> None:
        """Let it go on with what a part returns."""
        self._call.answer(value)

    def real(self, call: PartCall) -> nn.Module:
        """The part that answers a call."""
        return self.stock.real(call, self.parts)

    def close(self) -> None:
        """End it."""
        self._call.close()


class _Led:
    """What a stock call asks by: it answers itself until the call waits for its latents at index `to`.

    A round of the loop is one question. Where it steps several fields, latents are put in at the first, from which the
    others have theirs; and the guided outputs are known at the last, before which steps leave latents as they are.
    """

    def __init__(self, stock: StockCall, parts: Parts, to: int, ask: Ask) -> None:
        self.stock, self.parts, self.to, self.ask = stock, parts, to, ask
        self.index = 0
        """Rounds begun."""
        self._round, self._given, self._late = list[Step](), list[Tensor](), list[Tensor]()

    def __call__(self, question: Any) -> Any:
        if isinstance(question, Drawn):
            return self._drawn(question)
        if isinstance(question, Step):
            return self._stepped(question)
        asleep = self.stock.networks if self.index < self.to else self.stock.asleep if self.index else ()
        if question.part in asleep:
            return self.stock.dummies.of(self.stock.real(question, self.parts), question)
        return self.ask(question._replace(begun=self.index > 0))

    def _drawn(self, question: Drawn) -> Any:
        if self.to > 0:
            return question.made
        if self.stock.fields is None:
            return self.ask(question)
        if question.field == 0:
            latents = self.ask(question)
            self._given = [] if latents is None else self.stock.fields.parted(latents)
        return self._given[question.field] if self._given else question.made

    def _stepped(self, question: Step) -> Any:
        fields = self.stock.fields
        if fields is None:
            self.index += 1
            return self.ask(question)
        self.index += not self._round
        self._round.append(question)
        steps, last = self._round, len(self._round) == fields.count
        if last:
            self._round = []
        if self.index == self.to:
            if len(steps) == 1:
                self._given = fields.parted(self.ask(question))
            return self._given[len(steps) - 1]
        if self.index < self.to:
            return question.sample
        if not last:
            self._late.append(torch.zeros_like(question.sample) if fields.late else question.sample)
            return self._late[-1]
        parts, late = fields.parted(self.ask(_joined(fields, steps))), self._late
        self._late = []
        if fields.late:
            for moved, part in zip(late, parts, strict=False):
                moved.copy_(part)
        return parts[-1]


def _joined(fields: Fields, steps: Sequence[Step]) -> Step:
    """The steps of a round as one."""
    out, sample = (fields.joined(values) for values in zip(*((step.out, step.sample) for step in steps), strict=True))
    return steps[0]._replace(out=out, sample=sample)


def _program(stock: StockCall, generator: torch.Generator, parts: Parts, index: int, asks: Ask) -> Any:
    """The stock call, whose parts ask."""
    pipe, ask = copy.copy(stock.pipe), _Led(stock, parts, index, asks)
    methods = {name: _keeping(stock, getattr(pipe, name)) for name in ENCODES if hasattr(pipe, name)}
    methods |= {name: _drawing(stock.places, getattr(pipe, name), ask) for name in stock.draw}
    if TREE in vars(pipe):
        methods[TREE] = begun_by(vars(pipe)[TREE], lambda draw: _drawing(stock.places, draw, ask))
    if hasattr(pipe, "run_safety_checker"):
        vars(pipe)["safety_checker"] = None  # finished images are checked where they go to people
    vars(pipe).update(
        methods,
        maybe_free_model_hooks=_nothing,  # other frames are under way
        _progress_bar_config={"disable": True},
        _internal_dict=copy.copy(vars(pipe).get("_internal_dict")),
        **{name: _asking(name, part, parts.get(name, part), ask) for name, part in stock.modules.items()},
        **{name: _stepping(scheduler, stock, ask) for name, scheduler in stock.schedulers.items()},
        **stock.tokenizers,
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
        return stock.keep((method.__name__,), args, kwargs, method)

    return call


def frozen(value: Any) -> Any:
    """A value as a key: arrays by shape, dtype and device, plain values by what they are, others by who they are."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, list | tuple):
        return type(value), tuple(map(frozen, value))
    if isinstance(value, dict):
        return tuple((name, frozen(inside)) for name, inside in value.items())
    plain = str | bool | int | float | None | torch.dtype | torch.device
    return (type(value), value) if isinstance(value, plain) else (type(value), id(value))


def arrays_in(value: Any) -> list[Tensor]:
    """The arrays in a value as tensors, in order."""
    if isinstance(value, np.ndarray):
        return [torch.from_numpy(value.copy())]  # changes in place of which nobody counts
    if isinstance(value, list | tuple | dict):
        inside = value.values() if isinstance(value, dict) else value
        return [array for each in inside for array in arrays_in(each)]
    return [value] if isinstance(value, Tensor) else []


def _drawing(places: Sequence[LatentsPlace] | None, method: Callable[..., Any], ask: Ask) -> Callable[..., Any]:
    """A method that draws latents, which asks what the call is to begin with."""
    calls = Counter[str]()

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls[method.__name__] += 1
        by, made = DrawnBy(method.__name__, calls[method.__name__]), method(*args, **kwargs)
        if places is None:  # a rehearsal finds them
            return ask(Drawn(by, made))
        for of, place in enumerate(places):
            if place.by != by:
                continue
            drawn = made if place.entry is None else made[place.entry]
            begun = ask(Drawn(by, permuted(drawn, place.axes), of))
            begun = permuted(begun, place.axes, back=True)
            at = place.entry
            made = begun if at is None else (*made[:at], begun, *made[at + 1 :])
        return made

    return call


def _locked(tokenizer: Any) -> Any:
    """A copy of the outer object of a tokenizer, which works while no other thread's does: it is set, by each call, to
    how it pads and cuts."""
    kind = type(tokenizer)

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ENCODING:
            return kind.__call__(self, *args, **kwargs)

    return _twin(tokenizer, {"__call__": call})


def _twin(part: Any, methods: dict[str, Any]) -> Any:
    """A copy of the outer object of a part, over the same inside, with other methods."""
    kind = type(part)
    twin: Any = object.__new__(type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods}))
    vars(twin).update(vars(part))
    return twin


def _asking(name: str, own: nn.Module, part: nn.Module, ask: Ask) -> Any:
    """A copy of the outer object of a part, over the same inside, whose METHODS ask.

    own: the pipeline's part of this name, whose methods it has as well.
    """

    def asks(method: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return ask(PartCall(name, method, args, kwargs))

        kind = type(part) if hasattr(type(part), method) else type(own)
        return functools.wraps(getattr(kind, method))(call)

    methods = {method: asks(method) for method in METHODS if hasattr(part, method) or hasattr(own, method)}
    return _twin(part, methods)


def _stepping(scheduler: Any, stock: StockCall, ask: Ask) -> Any:
    """A copy of a scheduler that asks what its steps make, as do copies that the call makes of it."""
    own = copy.deepcopy(scheduler)
    _ask_for_steps(own, stock, ask, 0)
    return own


def _ask_for_steps(own: Any, stock: StockCall, ask: Ask, index: int) -> None:
    """Let a scheduler ask what its steps make, the next of which is at this index."""
    names = [name for name in inspect.signature(own.step).parameters if name != "return_dict"]

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

    def copied(memo: dict[int, Any]) -> Any:
        twin = object.__new__(type(own))
        vars(twin).update({name: copy.deepcopy(value, memo) for name, value in vars(stock_scheduler(own)).items()})
        vars(twin).update({name: vars(own)[name] for name in ("_step_index", WHOLE) if name in vars(own)})
        _ask_for_steps(twin, stock, ask, index)
        return twin

    changes: dict[str, Any] = {"step": functools.wraps(own.step)(step), "__deepcopy__": copied}
    if (scaled := stock.scaled) is not None:
        changes["scale_model_input"] = lambda sample, timestep=None: scaled(sample, index)
    if (times := stock.times) is not None:
        set_timesteps, add_noise = own.set_timesteps, getattr(own, "add_noise", None)

        def retimed(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            vars(own)[WHOLE] = not own.timesteps.is_floating_point()
            own.timesteps, own.num_inference_steps = times.to(own.timesteps.device), len(times)
            if stock.sigmas is not None:
                own.sigmas = stock.sigmas.to(own.sigmas.device)

        def noised(samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            # Those that are whole know no others.
            near = timesteps.round().long() if vars(own).get(WHOLE) else timesteps
            added: Tensor = add_noise(samples, noise, near)  # type: ignore[misc]
            return added

        if add_noise is not None:
            changes["add_noise"] = noised
        changes["set_timesteps"] = functools.wraps(set_timesteps)(retimed)
    vars(own).update(changes)  # wrapped, since pipelines read the signatures
