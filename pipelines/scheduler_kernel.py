"""Steps by a diffusers scheduler's own `step`, for rows at different positions, exact under pruning and branching.

Stock schedulers step one batch at one position and keep what they remember (earlier predictions, the position) for
that batch. Here a scheduler without memory steps all rows of one position together; one with memory is copied for
every candidate. The noise of a candidate comes from the generator that drew its initial noise, as in diffusers, so
that its seed alone makes its image again; a branch gets a generator of its own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Prediction


class Memory(NamedTuple):
    """What a candidate (`owner`: seed, branch) keeps: the state of its generator, and its scheduler, where needed."""

    owner: tuple[int, ...]
    generator: torch.Generator
    scheduler: Any = None

    def of(self, key: rng.Key) -> torch.Generator:
        """A generator for the step of this key: a copy of the candidate's own, a new one for a branch."""
        return self.generator.clone_state() if key[:-1] == self.owner else rng.generator(key)


@dataclass(frozen=True)
class RowKernel:
    """A deterministic scheduler of one evaluation a step that remembers nothing (DDIM, Euler)."""

    scheduler: Any
    arguments: Mapping[str, Any]
    stochastic: bool = False

    def step(self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Source]) -> Tensor:
        return _by_position(self.scheduler, x, prediction.out, k, self.arguments, None)


@dataclass(frozen=True)
class NoisyKernel:
    """A scheduler of one evaluation a step that draws noise and remembers nothing else (Euler ancestral, LCM)."""

    scheduler: Any
    arguments: Mapping[str, Any]
    stochastic: bool = True

    def begin(self, key: rng.Key, generator: torch.Generator) -> Memory:
        return Memory(key, generator)

    def step_from(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Key], memory: Sequence[Memory]
    ) -> tuple[Tensor, list[Memory]]:
        generators = [m.of(key) for m, key in zip(memory, keys, strict=True)]
        moved = _by_position(self.scheduler, x, prediction.out, k, self.arguments, generators)
        return moved, [Memory(key[:-1], g) for key, g in zip(keys, generators, strict=True)]


@dataclass(frozen=True)
class CandidateKernel:
    """Any scheduler: every candidate has a copy of its own, with its own history (DPM-Solver++, UniPC, Heun)."""

    scheduler: Any
    stochastic: bool
    arguments: Mapping[str, Any]

    def begin(self, key: rng.Key, generator: torch.Generator) -> Memory:
        return Memory(key, generator, self.scheduler)

    def step_from(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Key], memory: Sequence[Memory]
    ) -> tuple[Tensor, list[Memory]]:
        moved, after = [], []
        for i, (key, before) in enumerate(zip(keys, memory, strict=True)):
            own, generator = _copied(before.scheduler), before.of(key)
            here = slice(i, i + 1)
            moved.append(_step(own, x[here], prediction.out[here], int(k[i]), self.arguments, [generator]))
            after.append(Memory(key[:-1], generator, own))
        return torch.cat(moved), after


def _by_position(
    scheduler: Any,
    x: Tensor,
    out: Tensor,
    k: Tensor,
    arguments: Mapping[str, Any],
    generators: Sequence[torch.Generator] | None,
) -> Tensor:
    """One call of scheduler.step for all rows of each position."""
    positions = sorted(set(k.tolist()))
    moved: list[Any] = [None] * len(x)
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
    arguments: Mapping[str, Any],
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
