"""What a stock call does, found by running it without its networks.

No table says of a pipeline where its first latents come from, which of its parts denoise, how many steps it takes and
at which timesteps, and what else it draws. A call whose networks answer with dummies (dummies.py) shows all of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ttsnap.pipelines.calls.dummies import Dummies
from ttsnap.pipelines.calls.frame import CallFrame, StockCall, stock_scheduler
from ttsnap.pipelines.calls.joining import Arguments, UnlikeError, tensors_in
from ttsnap.pipelines.calls.questions import NOWHERE, Drawn, LatentsPlace, PartCall, Step
from ttsnap.pipelines.calls.shared_parts import Processor, changed, dtypes, processors
from ttsnap.pipelines.suspended import Returned
from ttsnap.sampling.rng import seeded

Mark = tuple[float, float]
"""Two sums over a tensor, by which it is known again."""


class Rehearsal(NamedTuple):
    """What a stock call does."""

    place: LatentsPlace
    networks: tuple[str, ...]
    """The parts that are called in its steps."""
    scheduler: Any
    """With the timesteps of the call, no step taken."""
    times: Tensor
    """(P,) the timesteps of its steps, on the CPU."""
    step_arguments: Mapping[str, Any]
    """Further arguments of the scheduler's step, without the generator."""
    passes: int
    """Rows that the first step asks of the network which is asked most."""
    latents: Tensor
    """(1, ...) of the first step, of the seed 0."""
    out: torch.dtype
    """Of the guided output."""
    by_seed: bool
    """Whether more than the latents of the first step differs from seed to seed, or from particle to particle."""
    remembers: bool
    """Whether what a step asks depends on more of the steps before than on the latents, as with momentum."""
    nfe_flops: float
    """Of an evaluation, as the first step makes it."""
    decode_flops: float
    made: Any
    """What it returned."""
    dummies: Dummies
    """What its networks answered."""
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
    flops: dict[tuple[int, str], float] = field(default_factory=lambda: defaultdict(float))
    """By index and method."""
    times: list[float] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    first: Step | None = None
    marks: list[tuple[Mark, ...]] = field(default_factory=list)
    """Of what networks, steps and decoders were given, in order."""
    indices: list[int] = field(default_factory=list)
    """The index at which each of these was."""
    processors: dict[str, list[Processor]] = field(default_factory=dict)
    """At the first step."""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    """At the last decode."""
    made: Any = None


def rehearse(stock: StockCall) -> Rehearsal:
    """Run a call without its networks, some times.

    ValueError, in one sentence, for a call that a search cannot suspend.
    """
    dummies = stock.dummies
    name = stock.function.__qualname__.partition(".")[0]
    _check_training(stock)
    candidates = {part for part, module in stock.modules.items() if _may_denoise(module)}
    before = torch.default_generator.get_state()
    unchanged, widths = processors(stock.modules), dtypes(stock.modules)
    whole = _run(stock, dummies, candidates, 0)
    if not torch.equal(before, torch.default_generator.get_state()):
        raise ValueError(f"search cannot use this call of {name}: it draws noise from torch's global generator, which "
                         "no seed makes again")  # fmt: skip
    if whole.first is None or len(whole.times) == 0:
        raise ValueError(f"search cannot use {name}: its call steps no scheduler, so that there is nothing to suspend")
    if len({id(each) for each in whole.schedulers}) > 1:
        raise ValueError(f"search cannot use {name} yet: its call steps {len({id(s) for s in whole.schedulers})} "
                         "schedulers, and candidates are followed by one")  # fmt: skip
    first = whole.first
    if len(first.sample) != 1:
        raise ValueError(f"search cannot use {name} yet: its call steps {len(first.sample)} rows for one image")
    place = _place(whole)
    networks = _networks(whole, candidates, name)
    more = {key: value for key, value in first.more.items() if key != "generator"}
    if held := [key for key, value in more.items() if isinstance(value, Tensor)]:
        raise ValueError(f"search cannot use {name} yet: its steps read {' and '.join(held)}, which is kept from step "
                         "to step")  # fmt: skip
    placed = replace(stock, place=place)
    by_seed, remembers = _depends(placed, dummies, networks)
    at_first = [(part, rows) for index, part, method, rows in whole.calls if index == 0 and part in networks]
    rows: Counter[str] = Counter()
    for part, n in at_first:
        rows[part] += n
    scheduler = stock_scheduler(first.scheduler)
    times = torch.tensor(whole.times, dtype=torch.float64)
    steps = torch.as_tensor(scheduler.timesteps).double().cpu()[-len(times) :]
    if len(steps) != len(times) or not torch.allclose(steps.float(), times.float(), rtol=1e-5):
        raise ValueError(f"search cannot use {name} yet: it steps its scheduler {len(times)} times, at other timesteps "
                         f"than the {len(steps)} that are listed")  # fmt: skip
    return Rehearsal(
        place,
        tuple(sorted(networks)),
        scheduler,
        times,
        more,
        max(rows.values()),
        first.sample,
        first.out.dtype,
        by_seed,
        remembers,
        sum(flops for (index, method), flops in whole.flops.items() if index == 0 and method == "network"),
        sum(flops for (index, method), flops in whole.flops.items() if method == "decode"),
        whole.made,
        dummies,
        changed(unchanged, whole.processors),
        bool(whole.dtypes) and whole.dtypes != widths,
    )


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


def _may_denoise(module: nn.Module) -> bool:
    """Whether a part may be a network that denoises: one of diffusers' that neither encodes nor decodes."""
    return isinstance(module, ModelMixin) and not hasattr(module, "decode")


def _run(
    stock: StockCall,
    dummies: Dummies,
    asleep: set[str],
    seed: int,
    start: Tensor | None = None,
    fills: Callable[[int], float] = lambda index: 0.0,
    from_index: int = 0,
) -> _Run:
    """Run a call without the parts that are `asleep`, and without decoders.

    start: the latents of the first step; None: those of the seed. fills: with what dummies are filled at an index, and
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
    start: Tensor | None,
    fills: Callable[[int], float],
    from_index: int,
) -> None:
    """Carry a frame to its end, and note what it asks."""
    while not isinstance(asked := frame.question, Returned):
        index = frame.index
        if isinstance(asked, Drawn):
            run.drawn.append(asked)
            frame.go_on(asked.made if start is None else start)
        elif isinstance(asked, Step):
            if run.first is None:
                run.first, run.processors = asked, processors(frame.stock.modules)
            run.times.append(float(asked.time))
            run.schedulers.append(asked.scheduler)
            _mark(run, index - 1, (asked.out, asked.sample))
            moved = asked.sample if index < from_index else torch.full_like(asked.sample, fills(index))
            frame.go_on(moved)
        else:
            _answer(run, frame, asked, dummies, asleep, fills(index) if index >= from_index else 0.0)
    run.made = asked.value


def _answer(run: _Run, frame: CallFrame, asked: PartCall, dummies: Dummies, asleep: set[str], fill: float) -> None:
    index, decodes = frame.index, asked.method == "decode"
    if asked.part not in asleep and not decodes:
        frame.answer(getattr(frame.real(asked.part), asked.method)(*asked.args, **asked.kwargs))
        return
    given = tensors_in((asked.args, asked.kwargs))
    run.calls.append((index, asked.part, asked.method, _rows(asked)))
    _mark(run, index, given)
    if decodes:
        run.dtypes = dtypes(frame.stock.modules)
    shown = dummies.shown(frame.real(asked.part), asked)
    run.flops[index, "decode" if decodes else "network"] += shown.flops
    frame.answer(dummies.of(frame.real(asked.part), asked, fill))


def _rows(asked: PartCall) -> int:
    try:
        return Arguments(asked.args, asked.kwargs).rows
    except UnlikeError:
        return 1


def _mark(run: _Run, index: int, tensors: Any) -> None:
    run.indices.append(index)
    run.marks.append(tuple(_marked(each) for each in tensors))


def _marked(tensor: Tensor) -> Mark:
    wide = tensor.detach().double().nan_to_num().flatten()
    weights = torch.linspace(1, 2, wide.numel(), dtype=torch.float64, device=wide.device)
    return float(wide.abs().sum()), float((wide * weights).sum())


def _place(run: _Run) -> LatentsPlace:
    """Where the latents of the first step come from."""
    assert run.first is not None
    for drawn in run.drawn:
        entries = list(enumerate(drawn.made)) if isinstance(drawn.made, tuple) else [(None, drawn.made)]
        for entry, value in entries:
            if isinstance(value, Tensor) and _same(value, run.first.sample):
                return LatentsPlace(drawn.call, entry)
    return NOWHERE


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _networks(run: _Run, candidates: set[str], name: str) -> set[str]:
    """The parts that are called in the steps after the first or, where there is one step, before it."""
    last = len(run.times)
    later = {part for index, part, _, _ in run.calls if 0 < index < last and part in candidates}
    found = later if last > 1 else {part for _, part, _, _ in run.calls if part in candidates}
    if not found:
        raise ValueError(f"search cannot use {name}: none of its parts is a network that is called between two steps")
    return found


def _depends(stock: StockCall, dummies: Dummies, networks: set[str]) -> tuple[bool, bool]:
    """Whether what a call asks of its networks depends, beside the latents, on the seed; and on the steps before."""

    def fills(index: int) -> float:
        return 0.25 + 0.125 * (index % 5)

    base = _run(stock, dummies, networks, 0, fills=fills)
    assert base.first is not None
    start = base.first.sample
    # A frame that is led to the middle by other latents and results, and from there on given the same.
    middle = max(1, len(base.times) // 2)
    led = _run(stock, dummies, networks, 0, start, fills, from_index=middle)
    remembers = _from(led, middle + 1) != _from(base, middle + 1)
    if stock.place == NOWHERE or remembers:
        return True, remembers
    # One that begins with other latents and is given the same in the middle: Kandinsky keeps its first ones for a mask.
    begun = _run(stock, dummies, networks, 0, 0.5 * start + 0.25, fills, from_index=middle)
    keeps_first = _from(begun, middle + 1) != _from(led, middle + 1)
    return keeps_first or _run(stock, dummies, networks, 1, start, fills).marks != base.marks, False


def _from(run: _Run, index: int) -> list[tuple[Mark, ...]]:
    return [mark for mark, at in zip(run.marks, run.indices, strict=True) if at >= index]
