"""Runs of a rehearsal: a stock call without its networks and decoders, and what is seen of it.

    run = run_of(stock, Setting(asleep={"transformer"}))
    run.times      # the timesteps of its steps
    run.calls      # which part was called, between which steps, with how many rows

Runs are compared by marks: a sum over each tensor that a network, a decoder or a step is given. It
is one of whole numbers, by the bits of the tensor, since not all devices know float64."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.joining import rows_of
from ttsnap.pipelines.calls.parts import (
    DECODE,
    Processor,
    denoisers_of,
    dtypes,
    has_hooks,
    processors,
)
from ttsnap.pipelines.calls.pictures import images_of, sound_of
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.stops import NOWHERE, Drawn, LatentsPlace, PartCall, Step, place_of
from ttsnap.pipelines.calls.values import Fields, holds_memory, tensors_in, version_of
from ttsnap.pipelines.suspended import Returned
from ttsnap.sampling.rng import seeded

# --- One run of a rehearsal: a stock call without its networks and decoders, and what is seen of it
#     run = run_of(stock, Setting(asleep={"transformer"}))
#     run.times      # the timesteps of its steps
#     run.calls      # which part was called, between which steps, with how many rows
#
# Runs are compared by marks: a sum over each tensor that a network, a decoder or a step is given. It
# is one of whole numbers, by the bits of the tensor, since not all devices know float64.

CHUNK = 1 << 20
"""The most numbers that are widened at once."""


@dataclass(frozen=True)
class Setting:
    """How a run goes."""

    asleep: Collection[str]
    """The parts that dummies answer for, beside decoders."""
    seed: int = 0
    start: Sequence[Tensor] | None = None
    """The latents of the first round; None: those of the seed."""
    fills: Callable[[int], float] = lambda index: 0.0
    """An index -> with what dummies are filled there, and latents after it."""
    from_index: int = 0
    """The first index at which they are; before it, all are left as they come."""

    def fill(self, index: int) -> float:
        """With what dummies are filled."""
        return self.fills(index) if index >= self.from_index else 0.0


class Called(NamedTuple):
    """A call of a part."""

    at: int
    """How often the scheduler had stepped."""
    part: str
    rows: int


@dataclass
class CallRun:
    """What was seen of one."""

    device: torch.device
    """Where it computes."""
    drawn: list[Drawn] = field(default_factory=list)
    calls: list[Called] = field(default_factory=list)
    """Of networks and decoders."""
    flops: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Of the networks' calls before each step, by its index."""
    times: list[float] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    """Of each step."""
    firsts: list[Step] = field(default_factory=list)
    """The first step of each scheduler, with copies of the latents: calls may change them."""
    places: list[LatentsPlace | None] = field(default_factory=list)
    """Where these latents come from."""
    stepped: list[tuple[Tensor, int]] = field(default_factory=list)
    """These latents, and their version then, which counts changes in place."""
    writes_steps: bool = True
    """Whether these latents are, at later steps, the latents of those."""
    marks: list[tuple[int, Tensor]] = field(default_factory=list)
    """Of what networks, steps and decoders were given, in order, and of the image; each with its
    index, and where the call computes."""
    given: list[Tensor] = field(default_factory=list)
    """Those of what networks and decoders were given."""
    hooked: set[str] = field(default_factory=set)
    """Parts in which there were hooks."""
    filling: set[str] = field(default_factory=set)
    """Parts that were given objects of their own kind, which they may fill for later calls."""
    processors: dict[str, list[Processor]] = field(default_factory=dict)
    """At the first step."""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    """At the last decode."""
    draws: bool = False
    """Whether a decoder draws noise."""
    image: tuple[int, ...] = ()
    """The shape of what the call returned, as of images_of."""
    sounds: bool = False
    """Whether it returned sound."""

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Of what the first round steps."""
        return tuple(step.sample.shape for step in self.firsts)

    def marks_from(self, index: int) -> list[int]:
        """The marks of this index and later ones, for which the device is waited once."""
        marks = [mark for at, mark in self.marks if at >= index]
        found: list[int] = torch.stack(marks).tolist() if marks else []
        return found

    def passes(self, networks: Collection[str]) -> int:
        """Rows that are asked between two steps of the network which is asked most, at most."""
        rows: Counter[tuple[int, str]] = Counter()
        for call in self.calls:
            if call.part in networks:
                rows[call.at, call.part] += call.rows
        return max(rows.values())

    # --- seeing -----------------------------------------------------------------------------------

    def see_step(self, frame: CallFrame, step: Step) -> None:
        """Note a step."""
        if not self.firsts:
            self.processors = processors(frame.stock.modules)
        if all(step.scheduler is not known.scheduler for known in self.firsts):
            self.firsts.append(step._replace(sample=step.sample.clone()))
            self.places.append(place_of(step.sample, self.drawn))
            self.stepped.append((step.sample, version_of(step.sample)))
        for known, (first, _) in zip(self.firsts, self.stepped, strict=True):
            if known.scheduler is step.scheduler:
                self.writes_steps &= torch.equal(first, step.sample)
        self.times.append(float(step.time))
        self.schedulers.append(step.scheduler)
        self.mark(frame.index - 1, (step.out, step.sample))

    def see_call(self, index: int, call: PartCall) -> None:
        """Note a call of a network or a decoder."""
        if holds_memory(call.given):
            self.filling.add(call.part)
        self.calls.append(Called(index, call.part, rows_of(call)))
        self.given += self.mark(index, tensors_in(call.given))

    def mark(self, index: int, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mark what was seen at an index."""
        marks = [_sum(each).to(self.device) for each in tensors]
        self.marks += [(index, mark) for mark in marks]
        return marks


@torch.no_grad()
def run_of(stock: StockCall, setting: Setting) -> CallRun:
    """Run a call without the parts that are asleep, and without decoders."""
    run = CallRun(stock.device)
    with closing(CallFrame(stock, [seeded(setting.seed)])) as frame:
        while not isinstance(asked := frame.question, Returned):
            if isinstance(asked, Drawn):
                run.drawn.append(asked)
                start = setting.start
                frame.go_on(asked.made if start is None else start[asked.field])
            elif isinstance(asked, Step):
                _step(run, frame, asked, setting)
            elif asked.part in setting.asleep or asked.method == DECODE:
                _answer_dummy(run, frame, asked, setting)
            else:
                _answer(run, frame, asked)
        image = images_of(asked.value)
        run.mark(frame.index, [image])
        run.image = image.shape
        run.sounds = sound_of(asked.value) is not None
    return run


def first_shapes(stock: StockCall) -> tuple[torch.Size, ...]:
    """The shapes of what the first round of a call steps."""
    return run_of(stock, Setting(asleep=denoisers_of(stock.modules))).shapes


def _step(run: CallRun, frame: CallFrame, step: Step, setting: Setting) -> None:
    run.see_step(frame, step)
    if frame.index < setting.from_index:
        return frame.go_on(step.sample)
    frame.go_on(torch.full_like(step.sample, setting.fills(frame.index)))


def _answer(run: CallRun, frame: CallFrame, call: PartCall) -> None:
    """Let a part answer that is awake."""
    part = frame.real(call)
    if has_hooks(part):
        run.hooked.add(call.part)
    stock = replace(frame.stock, hooked=frozenset(run.hooked))
    frame.answer(stock.encoded(call, getattr(part, call.method)))


def _answer_dummy(run: CallRun, frame: CallFrame, call: PartCall, setting: Setting) -> None:
    index = frame.index
    # Passes of one step differ, as momentum of guidance is seen in their difference alone.
    passes = 1 + sum(known.at == index for known in run.calls)
    run.see_call(index, call)
    if call.method == DECODE:
        run.dtypes = dtypes(frame.stock.modules)
    shown = frame.answer_dummy(setting.fill(index) * passes)
    if call.method == DECODE:
        run.draws |= shown.draws
    else:
        run.flops[index] += shown.flops


def _sum(tensor: Tensor) -> Tensor:
    """() the sum of a tensor's bits, as whole numbers, by their places."""
    dtype = getattr(torch, f"int{8 * min(8, tensor.element_size())}")
    chunks = tensor.detach().flatten().view(dtype).split(CHUNK)
    sums = [
        (chunk * (torch.arange(len(chunk), device=chunk.device) + at * CHUNK + 1)).sum()
        for at, chunk in enumerate(chunks)
    ]
    return torch.stack(sums).sum()


# --- On what a stock call's questions depend beside the latents that a search puts in -------------
# Runs of a rehearsal are compared that differ in one thing: the seed, the steps before the middle, or
# the latents before it. Their marks are equal where nothing depends on that.


class Dependence(NamedTuple):
    """Of what a call asks of its networks, beside latents."""

    by_seed: bool
    """On the seed, or on first latents that differ from particle to particle."""
    remembers: bool
    """On the steps before, as with momentum."""


def dependence(stock: StockCall, networks: Collection[str], count: int) -> Dependence:
    """That of a call whose rounds have so many steps."""
    alone = Setting(asleep=networks, fills=_ramp)
    base = run_of(stock, alone)
    start = [step.sample for step in base.firsts]
    middle = count * (max(1, len(base.times) // (2 * count)) - 1) + 1

    def later(run: CallRun) -> object:
        return run.marks_from(middle + count)

    # Led to the middle by other latents and results, and from there on given the same.
    led = run_of(stock, replace(alone, start=start, from_index=middle))
    remembers = later(led) != later(base)
    if stock.places == NOWHERE or remembers:
        return Dependence(by_seed=True, remembers=remembers)
    # Begun with other latents besides: Kandinsky keeps its first ones for a mask.
    other = [0.5 * each + 0.25 for each in start]
    begun = run_of(stock, replace(alone, start=other, from_index=middle))
    if later(begun) != later(led):
        return Dependence(by_seed=True, remembers=False)
    seeded = run_of(stock, replace(alone, start=start, seed=1))
    return Dependence(by_seed=seeded.marks_from(0) != base.marks_from(0), remembers=False)


def reads_late(stock: StockCall, networks: Collection[str], fields: Fields) -> bool:
    """Whether nobody reads what the first steps of a round make before its last one."""

    def by_round(step: int) -> float:
        return _ramp(-(-step // fields.count))

    apart = run_of(stock, Setting(asleep=networks, fills=by_round))
    late = replace(stock, fields=replace(fields, late=True))
    together = run_of(late, Setting(asleep=networks, fills=_ramp))
    return torch.equal(torch.stack(apart.given), torch.stack(together.given))


def _ramp(index: int) -> float:
    """A number that differs from step to step."""
    return 0.25 + 0.125 * (index % 5)
