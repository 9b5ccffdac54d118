"""Steps by a diffusers scheduler's own `step`, for rows at different positions, exact under pruning and branching.

Stock schedulers step one batch at one position and keep what they remember (earlier predictions, the position) for
that batch. Here a scheduler without memory steps all rows of one position together; one with memory is copied for
every candidate. The noise of a candidate comes from the generator that drew its initial noise, as in diffusers, so
that its seed alone makes its image again; a branch gets a generator of its own.

Kernels count positions from the one where the call begins (`begin`), which is a later one of the scheduler's where an
image is redrawn.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ttsnap.sampling import rng
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.kernels import KernelState, Prediction, Stateless


class Memory(NamedTuple):
    """What a candidate (`owner`: seed, branch) keeps: the state of its generator, and its scheduler, where needed."""

    owner: tuple[int, ...]
    generator: torch.Generator
    scheduler: Any = None

    def at(self, key: rng.Source) -> tuple[rng.Key, torch.Generator]:
        """Who takes the step of this key (seed, branch, step), and the generator that its noise comes from.

        That is a copy of the candidate's own generator, and a new one for a branch. TypeError for noise near other
        noise.
        """
        if isinstance(key, rng.Mixture):
            raise TypeError("a diffusers scheduler draws its noise from a generator and cannot mix it with other "
                            "noise; choose a kernel that draws noise by key (sde, ddim)")  # fmt: skip
        owner = key[:-1]
        return owner, self.generator.clone_state() if owner == self.owner else rng.generator(key)


@dataclass(frozen=True)
class FlowEuler(Stateless):
    """diffusers' FlowMatchEulerDiscreteScheduler.step, exactly, with a step of its own for every row.

    sigmas (K+1,) float32 from the scheduler. Its `stochastic_sampling` is another kernel: see schedule.py.
    """

    sigmas: Tensor
    stochastic: bool = False

    def step(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Source], state: Sequence[KernelState]
    ) -> tuple[Tensor, Sequence[KernelState]]:
        out, wide = prediction.out, x.float()
        now, after = rows(self.sigmas[k], wide), rows(self.sigmas[k + 1], wide)
        # The step is rounded to the model's dtype, as torch does to diffusers' scalar.
        moved = wide + (after - now).to(out.dtype) * out
        return moved.to(out.dtype), state


@dataclass(frozen=True)
class RowKernel(Stateless):
    """A deterministic scheduler of one evaluation a step that remembers nothing (DDIM, Euler)."""

    scheduler: Any
    arguments: Mapping[str, object]
    begin: int = 0
    stochastic: bool = False

    def step(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Source], state: Sequence[None]
    ) -> tuple[Tensor, Sequence[None]]:
        return _by_position(self.scheduler, x, prediction.out, k + self.begin, self.arguments, None), state


@dataclass(frozen=True)
class NoisyKernel:
    """A scheduler of one evaluation a step that draws noise and remembers nothing else (Euler ancestral, LCM)."""

    scheduler: Any
    arguments: Mapping[str, object]
    begin: int = 0
    stochastic: bool = True

    keeps_history: ClassVar[bool] = True

    def init(self, key: rng.Key, generator: torch.Generator) -> Memory:
        return Memory(key, generator)

    def step(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Source], state: Sequence[Memory]
    ) -> tuple[Tensor, list[Memory]]:
        after = [Memory(*before.at(key)) for before, key in zip(state, keys, strict=True)]
        generators = [memory.generator for memory in after]
        return _by_position(self.scheduler, x, prediction.out, k + self.begin, self.arguments, generators), after


@dataclass(frozen=True)
class CandidateKernel:
    """Any scheduler: every candidate has a copy of its own, with its own history (DPM-Solver++, UniPC, Heun)."""

    scheduler: Any
    stochastic: bool
    arguments: Mapping[str, object]
    begin: int = 0

    keeps_history: ClassVar[bool] = True

    def init(self, key: rng.Key, generator: torch.Generator) -> Memory:
        return Memory(key, generator, self.scheduler)

    def step(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Source], state: Sequence[Memory]
    ) -> tuple[Tensor, list[Memory]]:
        moved, after = [], []
        for i, (key, before) in enumerate(zip(keys, state, strict=True)):
            own, (owner, generator) = _copied(before.scheduler), before.at(key)
            here = slice(i, i + 1)
            at = int(k[i]) + self.begin
            moved.append(_step(own, x[here], prediction.out[here], at, self.arguments, [generator]))
            after.append(Memory(owner, generator, own))
        return torch.cat(moved), after


def _by_position(
    scheduler: Any,
    x: Tensor,
    out: Tensor,
    k: Tensor,
    arguments: Mapping[str, object],
    generators: Sequence[torch.Generator] | None,
) -> Tensor:
    """One call of scheduler.step for all rows of each position."""
    positions = sorted(set(k.tolist()))
    moved = list(x)
    for position in positions:
        here = (k == position).nonzero()[:, 0].tolist()
        own = None if generators is None else [generators[i] for i in here]
        rows = here if len(positions) > 1 else slice(None)
        scheduler._step_index = position
        part = _step(scheduler, x[rows], out[rows], position, arguments, own)
        if len(positions) == 1:
            return part
        for i, row in zip(here, part, strict=True):
            moved[i] = row
    return torch.stack(moved)


def _step(
    scheduler: Any,
    x: Tensor,
    out: Tensor,
    position: int,
    arguments: Mapping[str, object],
    generators: Sequence[torch.Generator] | None,
) -> Tensor:
    if hasattr(scheduler, "is_scale_input_called"):  # Schedule.scaled did what it would have
        scheduler.is_scale_input_called = True
    extra = dict(arguments)
    if generators is not None and "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = list(generators) if len(generators) > 1 else generators[0]
    moved: Tensor = scheduler.step(out, scheduler.timesteps[position], x, return_dict=False, **extra)[0]
    return moved


def _copied(scheduler: Any) -> Any:
    """A scheduler with the same history that can go its own way. Tensors are shared: schedulers replace them."""
    own = copy.copy(scheduler)
    for name, value in vars(own).items():
        if isinstance(value, list):
            setattr(own, name, list(value))
    return own
