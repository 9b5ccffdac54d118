"""Steps by a diffusers scheduler's own `step`, for rows at different positions, exact under pruning
and branching.

Stock schedulers step one batch at one position, and keep earlier predictions and the position of
that batch. Here rows of one position step together. Where schedulers have a history, each group of
rows has a copy, and rows of equal history join one. The noise of a candidate comes from the
generator that drew its initial noise, as in diffusers. So its seed alone reproduces its image. A
branch gets a generator of its own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.sampling import rng
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.kernels import Kernel, KernelState, Ode, Prediction, Stateless


class Memory(NamedTuple):
    """The state of a candidate."""

    owner: tuple[int, ...]
    """The candidate: seed and branch."""
    generator: torch.Generator
    scheduler: Any = None
    """The copy of the rows with which it stepped last, where schedulers have a history."""
    rows: int = 0
    """How many these are; 0 before the first step."""
    row: int = 0
    """Which of them it is."""

    def at(self, key: rng.Source) -> tuple[rng.Key, torch.Generator]:
        """The candidate that takes the step of this key (seed, branch, step), and the generator of
        its noise.

        That is a copy of the candidate's own generator, or a new one for a branch. TypeError for
        mixed noise.
        """
        if isinstance(key, rng.Mixture):
            raise TypeError(
                "a diffusers scheduler draws its noise from a generator and cannot mix it with"
                " other noise; choose a kernel that draws noise by key (sde, ddim)"
            )
        owner = key[:-1]
        return owner, self.generator.clone_state() if owner == self.owner else rng.generator(key)


@dataclass(frozen=True)
class FlowEuler(Stateless):
    """diffusers' FlowMatchEulerDiscreteScheduler.step, exactly, with a step of its own for every
    row.

    Its `stochastic_sampling` is a SchedulerKernel.
    """

    sigmas: Tensor
    """(K+1,) float32, the scheduler's."""
    stochastic: bool = False

    def step(
        self,
        x: Tensor,
        prediction: Prediction,
        k: Tensor,
        keys: Sequence[rng.Source],
        state: Sequence[KernelState],
    ) -> tuple[Tensor, Sequence[KernelState]]:
        out = prediction.out
        wide = x.float()
        now = rows(self.sigmas[k], wide)
        after = rows(self.sigmas[k + 1], wide)
        # The step is rounded to the model's dtype, as torch does to diffusers' scalar.
        moved = wide + (after - now).to(out.dtype) * out
        return moved.to(out.dtype), state


@dataclass(frozen=True)
class SchedulerKernel:
    """Any scheduler by its own step."""

    scheduler: Any
    stochastic: bool
    arguments: Mapping[str, object]
    """Of the scheduler's step."""
    begin: int = 0
    """The scheduler's position where the call begins: a later one where an image is redrawn."""
    copied: bool = False
    """Whether candidates have copies of the scheduler with their history (DPM-Solver++, UniPC,
    Heun). The others make one evaluation a step, and keep nothing but the generator of their noise
    (DDIM, Euler ancestral)."""
    apart: bool = False
    """Whether rows step one by one, by copies of a scheduler of which little is known."""
    overwritten: bool = False
    """Whether a step's latents become what it makes of them, also where the scheduler keeps them,
    as in SkyReels V2."""

    @property
    def keeps_history(self) -> bool:
        return self.stochastic or self.copied

    def init(
        self, noise: Tensor, key: rng.Key, generator: torch.Generator, guess: Tensor | None = None
    ) -> Memory | None:
        if self.keeps_history:
            return Memory(key, generator, self.scheduler if self.copied else None)
        return None

    def step(
        self,
        x: Tensor,
        prediction: Prediction,
        k: Tensor,
        keys: Sequence[rng.Source],
        state: Sequence[Any],
    ) -> tuple[Tensor, Sequence[Memory | None]]:
        out = prediction.out
        k = k + self.begin
        if not self.keeps_history:
            return self._by_position(x, out, k, None), state
        after = [Memory(*before.at(key)) for before, key in zip(state, keys, strict=True)]
        if not self.copied:
            return self._by_position(x, out, k, [memory.generator for memory in after]), after
        return self._with_histories(x, out, k, state, after)

    def _with_histories(
        self, x: Tensor, out: Tensor, k: Tensor, before: Sequence[Memory], after: list[Memory]
    ) -> tuple[Tensor, list[Memory]]:
        """One call of a copy's step for all rows of equal position and history; what they remember
        then."""
        apart = self.apart or len(before) == 1
        kinds = {} if apart else {id(memory.scheduler): _kind(memory) for memory in before}
        groups: dict[Any, list[int]] = {}
        for i, (position, memory) in enumerate(zip(k.tolist(), before, strict=True)):
            kind = i if apart else kinds[id(memory.scheduler)]
            groups.setdefault((position, kind), []).append(i)
        moved: dict[int, Tensor] = {}
        for (position, _), here in groups.items():
            scheduler = _gathered([before[i] for i in here])
            generators = [after[i].generator for i in here]
            part = self._step(scheduler, _taken(x, here), _taken(out, here), position, generators)
            for row, i in enumerate(here):
                after[i] = after[i]._replace(scheduler=scheduler, rows=len(here), row=row)
            if len(groups) == 1:
                return part, after
            moved.update(zip(here, part.unbind(), strict=True))
        return torch.stack([moved[i] for i in range(len(x))]), after

    def _by_position(
        self, x: Tensor, out: Tensor, k: Tensor, generators: Sequence[torch.Generator] | None
    ) -> Tensor:
        """One call of scheduler.step for all rows of each position."""
        positions = sorted(set(k.tolist()))
        moved = list(x)
        for position in positions:
            here = (k == position).nonzero()[:, 0].tolist()
            own = None if generators is None else [generators[i] for i in here]
            self.scheduler._step_index = position
            part = self._step(self.scheduler, _taken(x, here), _taken(out, here), position, own)
            if len(positions) == 1:
                return part
            for i, row in zip(here, part, strict=True):
                moved[i] = row
        return torch.stack(moved)

    def _step(
        self,
        scheduler: Any,
        x: Tensor,
        out: Tensor,
        position: int,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        if hasattr(scheduler, "is_scale_input_called"):  # Schedule.scaled scaled the input
            scheduler.is_scale_input_called = True
        more = dict(self.arguments)
        if generators is not None and "generator" in inspect.signature(scheduler.step).parameters:
            more["generator"] = list(generators) if len(generators) > 1 else generators[0]
        kept = x.clone() if self.overwritten else x
        moved: Tensor = scheduler.step(
            out, scheduler.timesteps[position], kept, return_dict=False, **more
        )[0]
        if self.overwritten:
            kept.copy_(moved)
        return moved


def begun_later(kernel: Kernel, position: int) -> Kernel:
    """A call's own kernel for particles that begin at a later position. ValueError for one that
    cannot."""
    if isinstance(kernel, FlowEuler):
        return replace(kernel, sigmas=kernel.sigmas[position:])
    if isinstance(kernel, Ode):
        return replace(kernel, times=kernel.times[position:])
    if (
        not isinstance(kernel, SchedulerKernel)
        or type(kernel.scheduler).__name__ == "PNDMScheduler"
    ):
        name = type(getattr(kernel, "scheduler", kernel)).__name__
        raise ValueError(
            f"search cannot use {name} from a later step on; set pipe.scheduler to another one"
        )
    scheduler = copy.deepcopy(kernel.scheduler)
    begin = kernel.begin + position
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return replace(kernel, scheduler=scheduler, begin=begin)


def _taken(x: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows of x (N, ...). Not by an index, which would be copied to the device."""
    if len(rows) == len(x):
        return x
    each = x.unbind()
    return torch.stack([each[i] for i in rows])


def _gathered(memories: Sequence[Memory]) -> Any:
    """A scheduler with the history of these candidates, which are of one kind. Tensors are shared,
    since schedulers replace them, where these are all rows of one."""
    first = memories[0]
    rows = [memory.row for memory in memories]
    whole = rows == list(range(first.rows)) and all(
        memory.scheduler is first.scheduler for memory in memories
    )
    own = copy.copy(first.scheduler)

    def joined(values: Sequence[Any]) -> Any:
        if whole or not _by_row(values[0], first.rows):
            return values[0]
        return torch.cat([value[row : row + 1] for value, row in zip(values, rows, strict=True)])

    for name, value in vars(own).items():
        each = [vars(memory.scheduler)[name] for memory in memories]
        setattr(
            own,
            name,
            list(map(joined, zip(*each, strict=True))) if isinstance(value, list) else joined(each),
        )
    return own


def _kind(memory: Memory) -> Hashable:
    """What rows must share to step together: their history, but for tensors with a row for each."""

    def kind(value: Any) -> Hashable:
        if isinstance(value, list):
            return tuple(map(kind, value))
        if isinstance(value, Tensor):
            by_row = _by_row(value, memory.rows)
            return (value.shape[1:], value.dtype) if by_row else (value.data_ptr(), value.shape)
        return value if isinstance(value, int | float | str | None) else id(value)

    return tuple((name, kind(value)) for name, value in vars(memory.scheduler).items())


def _by_row(value: Any, rows: int) -> bool:
    """Whether part of a history is a tensor with a row for each candidate; numbers are for all of
    them."""
    return isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows
