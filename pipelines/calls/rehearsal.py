"""What a stock call does, found by running it without its networks.

No table says of a pipeline where its first latents come from, which of its parts denoise, how many steps it takes and
at which timesteps, and what else it draws. A call whose networks answer with dummies (dummies.py) shows all of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from ttsnap.pipelines.calls.dummies import Dummies
from ttsnap.pipelines.calls.fields import Fields
from ttsnap.pipelines.calls.frame import CallFrame, StockCall, stock_scheduler
from ttsnap.pipelines.calls.joining import holds_memory, rows_of, tensors_in, version_of
from ttsnap.pipelines.calls.pictures import images_of
from ttsnap.pipelines.calls.questions import NOWHERE, Drawn, LatentsPlace, PartCall, Step, permuted
from ttsnap.pipelines.calls.shared_parts import Processor, changed, dtypes, processors
from ttsnap.pipelines.suspended import Returned
from ttsnap.sampling.rng import seeded

MAIN = ("transformer", "unet")
"""What pipelines call the network that denoises, where they have several."""
Mark = tuple[float, float]
"""Two sums over a tensor, by which it is known again."""


class Rehearsal(NamedTuple):
    """What a stock call does."""

    places: tuple[LatentsPlace, ...]
    """Where the first latents of each field come from; NOWHERE where those of any cannot be put in."""
    fields: Fields
    networks: tuple[str, ...]
    """The parts that are called in its steps, the main one first."""
    scheduler: Any
    """With the timesteps of the call, no step taken."""
    others: tuple[Any, ...]
    """The schedulers of further fields."""
    times: Tensor
    """(P,) the timesteps of its rounds, on the CPU."""
    step_arguments: Mapping[str, Any]
    """Further arguments of the scheduler's step, without the generator."""
    passes: int
    """Rows that a step asks of the network which is asked most, at most."""
    latents: Tensor
    """(1, ...) of the first step, of the seed 0."""
    out: torch.dtype
    """Of the guided output."""
    by_seed: bool
    """Whether more than the latents of the first step differs from seed to seed, or from particle to particle."""
    remembers: bool
    """Whether what a step asks depends on more of the steps before than on the latents, as with momentum."""
    draws_last: bool
    """Whether the call draws noise after its last step, as where its decoder does."""
    overwrites: bool
    """Whether the call writes into latents that it has stepped, which schedulers with a history keep."""
    nfe_flops: float
    """Of an evaluation, as the dearest step makes it."""
    made: Any
    """What it returned."""
    dummies: Dummies
    """What its networks answered."""
    hooked: frozenset[str]
    """The parts in which the call puts hooks."""
    held: Mapping[str, list[Processor]]
    """Attention processors that the call has put into its networks, by part."""
    casts: bool
    """Whether it changes the dtype of a part to decode."""


@dataclass
class _Run:
    """What one rehearsal of a call saw."""

    drawn: list[Drawn] = field(default_factory=list)
    calls: list[tuple[int, str, str, int]] = field(default_factory=list)
    """(index, part, method, rows) of each call of a part."""
    flops: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Of the networks' calls before the first step."""
    times: list[float] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    firsts: list[Step] = field(default_factory=list)
    """The first step of each scheduler, with copies of the latents, which calls may change in place."""
    places: list[LatentsPlace | None] = field(default_factory=list)
    """Where these latents come from."""
    stepped: list[tuple[Tensor, int]] = field(default_factory=list)
    """These latents, and their version then, which counts changes in place."""
    marks: list[tuple[Mark, ...]] = field(default_factory=list)
    """Of what networks, steps and decoders were given, in order, and of what the call returned."""
    indices: list[int] = field(default_factory=list)
    """The index at which each of these was."""
    given: list[tuple[Mark, ...]] = field(default_factory=list)
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
    made: Any = None


def rehearse(stock: StockCall) -> Rehearsal:
    """Run a call without its networks, some times.

    ValueError, in one sentence, for a call that a search cannot suspend.
    """
    dummies = stock.dummies
    name = type(stock.pipe).stock_class().__name__
    _check_training(stock)
    candidates = {part for part, module in stock.modules.items() if may_denoise(module)}
    before = torch.default_generator.get_state()
    unchanged, widths = processors(stock.modules), dtypes(stock.modules)
    whole = _run(stock, dummies, candidates, 0)
    if not torch.equal(before, torch.default_generator.get_state()):
        raise ValueError(f"search cannot use this call of {name}: it draws noise from torch's global generator, which "
                         "no seed makes again")  # fmt: skip
    if not whole.firsts:
        if inner := [part for part, value in vars(stock.pipe).items() if isinstance(value, DiffusionPipeline)]:
            raise ValueError(
                f"search cannot use {name}: its call runs other pipelines; search with the last one, "
                f"pipe.{inner[-1]}, and give it what pipe.{inner[0]} makes"
            )
        raise ValueError(f"search cannot use {name}: its call steps no scheduler, so that there is nothing to suspend")
    count = _round(whole, name)
    first, fields = whole.firsts[0], Fields(tuple(step.sample.shape for step in whole.firsts))
    found = tuple(place for place in whole.places if place is not None)
    places = found if len(found) == count else NOWHERE
    networks = _networks(whole, candidates, stock.modules, name)
    if any(index % count for index, part, *_ in whole.calls if part in networks):
        raise ValueError(f"search cannot use {name} yet: it calls a network between the steps of one round")
    more = {key: value for key, value in first.more.items() if key != "generator"}
    if held := [key for key, value in more.items() if isinstance(value, Tensor)]:
        raise ValueError(f"search cannot use {name} yet: its steps read {' and '.join(held)}, which is kept from step "
                         "to step")  # fmt: skip
    by_seed, remembers = _depends(replace(stock, places=places), dummies, networks, count)
    if whole.filling & networks:  # a frame that is led without its networks has an empty cache
        by_seed = remembers = True
    if count > 1:
        fields = replace(fields, late=_late(replace(stock, places=NOWHERE), dummies, networks, fields))
    last, other = len(whole.times), _run(stock, dummies, candidates, 1)
    draws_last = whole.draws or _from(other, last) != _from(whole, last)
    if remembers and count > 1:
        raise ValueError(f"search cannot use {name} yet: a step of its {count} schedulers depends on more of those "
                         "before than on the latents")  # fmt: skip
    rows: Counter[tuple[int, str]] = Counter()
    for index, part, _, n in whole.calls:
        if part in networks:
            rows[index, part] += n
    scheduler = stock_scheduler(first.scheduler)
    times = torch.tensor(whole.times[::count], dtype=torch.float64)
    steps = torch.as_tensor(scheduler.timesteps).double().cpu()[-len(times) :]
    if len(steps) != len(times) or not torch.allclose(steps.float(), times.float(), rtol=1e-5):
        raise ValueError(f"search cannot use {name} yet: it steps its scheduler {len(times)} times, at other timesteps "
                         f"than the {len(steps)} that are listed")  # fmt: skip
    return Rehearsal(
        places,
        fields,
        main_first(networks),
        scheduler,
        tuple(stock_scheduler(step.scheduler) for step in whole.firsts[1:]),
        times,
        more,
        max(rows.values()),
        fields.joined([step.sample for step in whole.firsts]),
        first.out.dtype,
        by_seed or draws_last,
        remembers,
        draws_last,
        any(version_of(latents) != version for latents, version in whole.stepped),
        max(whole.flops.values()),
        whole.made,
        dummies,
        frozenset(whole.hooked),
        changed(unchanged, whole.processors),
        bool(whole.dtypes) and whole.dtypes != widths,
    )


def first_shapes(stock: StockCall) -> tuple[torch.Size, ...]:
    """The shapes of what the first round of a call steps, run without its networks."""
    asleep = {part for part, module in stock.modules.items() if may_denoise(module)}
    return tuple(step.sample.shape for step in _run(stock, stock.dummies, asleep, 0).firsts)


def _check_training(stock: StockCall) -> None:
    training = [name for name, part in stock.modules.items() if _drops(part)]
    if training:
        raise ValueError(f"{' and '.join(training)} of this pipeline drops values at random, being in training mode, "
                         f"so that no image can be repeated; call pipe.{training[0]}.eval()")  # fmt: skip


def _drops(part: nn.Module) -> bool:
    """Whether a part in training mode has dropout. Encoders of transformers have some that is no module."""
    if part.training and not isinstance(part, ModelMixin):
        return True
    dropouts = [inside for inside in part.modules() if isinstance(inside, nn.Dropout)]
    return any(inside.training and inside.p > 0 for inside in dropouts)


def may_denoise(module: Any) -> bool:
    """Whether a part may be a network that denoises: one of diffusers' that neither encodes nor decodes."""
    return isinstance(module, ModelMixin) and not hasattr(module, "decode")


def _run(
    stock: StockCall,
    dummies: Dummies,
    asleep: set[str],
    seed: int,
    start: Sequence[Tensor] | None = None,
    fills: Callable[[int], float] = lambda index: 0.0,
    from_index: int = 0,
) -> _Run:
    """Run a call without the parts that are `asleep`, and without decoders.

    start: the latents of the first round; None: those of the seed. fills: with what dummies are filled at an index, and
    latents after it. from_index: the first index at which they are; before it all are left as they come.
    """
    run = _Run()
    with closing(stock.begin(seeded(seed))) as frame:
        _seen(run, frame, dummies, asleep, start, fills, from_index)
    return run


def _seen(
    run: _Run,
    frame: CallFrame,
    dummies: Dummies,
    asleep: set[str],
    start: Sequence[Tensor] | None,
    fills: Callable[[int], float],
    from_index: int,
) -> None:
    """Carry a frame to its end, and note what it asks."""
    while not isinstance(asked := frame.question, Returned):
        index = frame.index
        if isinstance(asked, Drawn):
            run.drawn.append(asked)
            frame.go_on(asked.made if start is None else start[asked.field])
        elif isinstance(asked, Step):
            if not run.firsts:
                run.processors = processors(frame.stock.modules)
            if all(asked.scheduler is not step.scheduler for step in run.firsts):
                run.firsts.append(asked._replace(sample=asked.sample.clone()))
                run.places.append(_place(run, asked.sample))
                run.stepped.append((asked.sample, version_of(asked.sample)))
            run.times.append(float(asked.time))
            run.schedulers.append(asked.scheduler)
            _mark(run, index - 1, (asked.out, asked.sample))
            moved = asked.sample if index < from_index else torch.full_like(asked.sample, fills(index))
            frame.go_on(moved)
        else:
            _answer(run, frame, asked, dummies, asleep, fills(index) if index >= from_index else 0.0)
    run.made = asked.value
    _mark(run, frame.index, [images_of(run.made)])


def _answer(run: _Run, frame: CallFrame, asked: PartCall, dummies: Dummies, asleep: set[str], fill: float) -> None:
    index, decodes = frame.index, asked.method == "decode"
    if asked.part not in asleep and not decodes:
        real = frame.real(asked)
        if any(inside._forward_hooks for inside in real.modules()):
            run.hooked.add(asked.part)
        stock = replace(frame.stock, hooked=frozenset(run.hooked))
        frame.answer(stock.encoded(asked, getattr(real, asked.method)))
        return
    if holds_memory((asked.args, asked.kwargs)):
        run.filling.add(asked.part)
    passes = sum(at == index for at, *_ in run.calls)
    given = tensors_in((asked.args, asked.kwargs))
    run.calls.append((index, asked.part, asked.method, rows_of(asked)))
    _mark(run, index, given)
    run.given.append(run.marks[-1])
    shown = dummies.shown(frame.real(asked), asked)
    if decodes:
        run.dtypes, run.draws = dtypes(frame.stock.modules), run.draws or shown.draws
    else:
        run.flops[index] += shown.flops
    # Passes of one step differ, as momentum of guidance is seen in their difference alone.
    frame.answer(dummies.of(frame.real(asked), asked, fill * (1 + passes)))


def main_first(networks: Iterable[str]) -> tuple[str, ...]:
    """Names of networks, that of the one first which others, as ControlNets, lead."""
    return tuple(sorted(networks, key=lambda name: (name not in MAIN, name)))


@torch.no_grad()
def evaluated(frame: CallFrame, networks: Collection[str]) -> tuple[int, float]:
    """Passes of the first evaluation, and its FLOPs, of a frame that has begun. No network is asked."""
    rows, flops, dummies = Counter[str](), 0.0, frame.stock.dummies
    while isinstance(asked := frame.question, PartCall):
        if asked.part in networks:
            rows[asked.part] += rows_of(asked)
            flops += dummies.shown(frame.real(asked), asked).flops
        frame.answer(dummies.of(frame.real(asked), asked))
    return max(rows.values()), flops


def _mark(run: _Run, index: int, tensors: Any) -> None:
    run.indices.append(index)
    run.marks.append(tuple(_marked(each) for each in tensors))


def _marked(tensor: Tensor) -> Mark:
    wide = tensor.detach().double().nan_to_num().flatten()
    weights = torch.linspace(1, 2, wide.numel(), dtype=torch.float64, device=wide.device)
    return float(wide.abs().sum()), float((wide * weights).sum())


def _round(run: _Run, name: str) -> int:
    """How many schedulers a round of the loop steps. ValueError where they do not step in turn."""
    stepped = [id(scheduler) for scheduler in run.schedulers]
    count = len(run.firsts)
    if stepped != stepped[:count] * (len(stepped) // count):
        raise ValueError(
            f"search cannot use {name} yet: its call steps {count} schedulers, not in turn, and candidates are "
            "followed by one loop"
        )
    return count


def _place(run: _Run, latents: Tensor) -> LatentsPlace | None:
    """Where these latents come from."""
    for drawn in run.drawn:
        entries = list(enumerate(drawn.made)) if isinstance(drawn.made, tuple) else [(None, drawn.made)]
        for entry, value in entries:
            if isinstance(value, Tensor):
                orders = [axes for axes in _orders(value) if _same(permuted(value, axes), latents)]
                if orders:
                    return LatentsPlace(drawn.place, entry, orders[0])
    return None


def _orders(latents: Tensor) -> Iterator[tuple[int, ...] | None]:
    """In which a call may put the axes of its latents, beside that of rows."""
    yield None
    yield from ((0, *rest) for rest in permutations(range(1, latents.ndim)))


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether these are the same latents, but for a cast."""
    return one is other or (one.shape == other.shape and torch.equal(one.to(other), other))


def _networks(run: _Run, candidates: set[str], modules: Mapping[str, nn.Module], name: str) -> set[str]:
    """The parts that are called in the steps after the first or, where there is one step, before it."""
    last = len(run.times)
    called = {part for _, part, _, _ in run.calls if part in candidates}
    later = {part for index, part, _, _ in run.calls if 0 < index < last and part in candidates}
    kinds = {type(modules[part]) for part in later}
    # Of two experts, the first may be called in the first step alone.
    found = {part for part in called if type(modules[part]) in kinds} if last > 1 else called
    if not found:
        raise ValueError(f"search cannot use {name}: none of its parts is a network that is called between two steps")
    return found


def _depends(stock: StockCall, dummies: Dummies, networks: set[str], count: int) -> tuple[bool, bool]:
    """Whether what a call asks of its networks depends, beside the latents, on the seed; and on the steps before.

    count: how many steps a round has.
    """

    def fills(index: int) -> float:
        return 0.25 + 0.125 * (index % 5)

    base = _run(stock, dummies, networks, 0, fills=fills)
    start = [step.sample for step in base.firsts]
    # A frame that is led to the middle by other latents and results, and from there on given the same.
    middle = count * (max(1, len(base.times) // (2 * count)) - 1) + 1
    led = _run(stock, dummies, networks, 0, start, fills, from_index=middle)
    remembers = _from(led, middle + count) != _from(base, middle + count)
    if stock.places == NOWHERE or remembers:
        return True, remembers
    # One that begins with other latents and is given the same in the middle: Kandinsky keeps its first ones for a mask.
    other = [0.5 * each + 0.25 for each in start]
    begun = _run(stock, dummies, networks, 0, other, fills, from_index=middle)
    keeps_first = _from(begun, middle + count) != _from(led, middle + count)
    return keeps_first or _run(stock, dummies, networks, 1, start, fills).marks != base.marks, False


def _late(stock: StockCall, dummies: Dummies, networks: set[str], fields: Fields) -> bool:
    """Whether what the first steps of a round make is read by nobody before its last one."""

    def fills(index: int) -> float:
        return 0.25 + 0.125 * (index % 5)

    apart = _run(stock, dummies, networks, 0, fills=lambda index: fills(-(-index // fields.count)))
    joined = _run(replace(stock, fields=replace(fields, late=True)), dummies, networks, 0, fills=fills)
    return apart.given == joined.given


def _from(run: _Run, index: int) -> list[tuple[Mark, ...]]:
    return [mark for mark, at in zip(run.marks, run.indices, strict=True) if at >= index]
