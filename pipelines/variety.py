"""Seeds of a pipeline that are kept apart: in groups, coupled by Repel, or by noise of their prompts, as in CADS
(ttsnap.sampling.repel, ttsnap.sampling.cads)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import floor
from typing import Any
from weakref import proxy

import numpy as np
import torch
from torch import Tensor, nn

from ttsnap.options.option import Spec
from ttsnap.options.variety import Cads, Repel
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import Guidance, Texts, taken
from ttsnap.pipelines.latents.schedule import Schedule
from ttsnap.pipelines.memory.flops import counted_coupled
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.sampling import rng
from ttsnap.sampling.cads import gamma, noised
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.kernels import Kernel, KernelState, make_kernel
from ttsnap.sampling.repel import coupled


def couple_seeds(denoiser: PipelineDenoiser, how: Repel, kernel: Spec) -> None:
    """Let particles begin where groups of them have taken the call's steps of noise levels from `how.level` on.

    kernel: by name, for all steps. ValueError for a model, a kernel or a schedule that does not allow for it.
    """
    denoiser.must(Capability.COUPLE)
    if not isinstance(kernel, str):
        raise ValueError(f"variety repel steps by a kernel of its name, and {type(kernel).__name__} is an object; "
                         "name one, as kernel='ode'")  # fmt: skip
    grid = denoiser.grid
    steps = sum(level >= how.level - 1e-6 for level in grid.levels)
    if not 0 < steps < grid.steps:
        raise ValueError(f"variety repel couples the steps of noise levels from {how.level:g} on, which are {steps} of "
                         f"{grid.steps} here, and leaves at least one free; set the level, as in "
                         f"repel:{how.size}:{floor(100 * grid.levels[0]) / 100:g}")  # fmt: skip
    groups = CoupledStart(
        proxy(denoiser),
        shared_copy(denoiser.net),
        how,
        int(grid.calls[steps]),
        denoiser.schedule,
        denoiser.guidance,
        make_kernel(kernel, denoiser),
    )
    denoiser.begin_later(steps, grid.nfe)
    denoiser.groups = groups


@dataclass(frozen=True)
class CoupledStart:
    """Particles of a denoiser begin in groups (ttsnap.sampling.denoiser.GroupStart)."""

    denoiser: PipelineDenoiser
    net: nn.Module
    """A copy of its network, which is coupled. Other searches call the network itself meanwhile."""
    how: Repel
    nfe: int
    whole: Schedule
    """Of the call from noise, whose first steps are coupled."""
    guidance: Guidance
    """At its positions."""
    kernel: Kernel
    """Of its steps."""

    @property
    def size(self) -> int:
        return self.how.size

    def flops(self) -> float:
        twin = partial(self.denoiser.by, self.net)
        return counted_coupled(self.denoiser, self.size, twin, self._coupled)

    def _coupled(self, twin: Any, key: rng.Key = (0, 0)) -> AbstractContextManager[None]:
        return coupled(twin.net, self.how, twin.image_tokens, key)

    @torch.no_grad()
    def begin(
        self, noise: Tensor, cond: Tensor, keys: Sequence[rng.Key], generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Sequence[KernelState]]:
        twin = self.denoiser.by(self.net, schedule=self.whole, guidance=self.guidance)
        x = noise
        states: Sequence[KernelState] = [self.kernel.init(*each) for each in zip(noise, keys, generators, strict=True)]
        for position in range(self.nfe):
            at = torch.full((len(x),), position)
            with self._coupled(twin, (keys[0][0], position)) if len(noise) > 1 else nullcontext():
                prediction = twin.predict(x, at, cond)
            sources = [(*key, position) for key in keys]
            x, states = self.kernel.step(x, prediction, at, sources, states)
        return x, states


def noise_prompts(denoiser: PipelineDenoiser, how: Cads) -> None:
    """Let each seed read its encoded prompt under noise of its own. ValueError for a family that cannot say which of
    its text fields are embeddings, or pads them by the batch."""
    denoiser.must(Capability.NOISE_PROMPTS)
    if Capability.NOISE_PROMPTS not in denoiser.can:
        raise ValueError(f"{type(denoiser).__name__} pads prompts to the longest of a batch, on which variety cads "
                         "would depend; leave variety out, or take repel")  # fmt: skip
    levels = np.repeat(denoiser.grid.levels[:-1], np.diff(denoiser.grid.calls))
    denoiser.prompt_noise = NoisedPrompts(how, tuple(gamma(level, how) for level in levels), denoiser.embeddings)


@dataclass(frozen=True)
class NoisedPrompts:
    """Encoded prompts under noise of their seeds (ttsnap.sampling.denoiser.PromptNoise)."""

    how: Cads
    left: tuple[float, ...]
    """Gamma at each position of the schedule."""
    embeddings: int
    """How many text fields are noised; others are masks and ids."""
    known: dict[tuple[int, int], int] = field(default_factory=dict)
    """Numbers of pairs of an encoded prompt and a seed: -1, -2, ..., in order."""

    def conditions(self, prompts: Tensor, seeds: Sequence[int]) -> Tensor:
        pairs = zip(prompts.tolist(), seeds, strict=True)
        return torch.tensor([self.known.setdefault(pair, -1 - len(self.known)) for pair in pairs])

    def texts(self, texts: Texts, step: Tensor, cond: Tensor) -> tuple[Texts, Tensor]:
        pairs = list(self.known)
        rows = [(pairs[-1 - c][0], (pairs[-1 - c][1], k)) if c < 0 else (c, None)
                for c, k in zip(cond.tolist(), step.tolist(), strict=True)]  # fmt: skip
        at = torch.tensor([prompt for prompt, _ in rows])
        keys = [None if key is None or self.left[key[1]] == 1 else key for _, key in rows]
        if self.how.scale == 0 or not any(keys):
            return texts, at
        positive = taken(texts.positive, at)
        for i in range(self.embeddings):
            positive[i] = self._noised(positive[i], keys, i)
        return Texts(positive, None if texts.negative is None else taken(texts.negative, at)), torch.arange(len(at))

    def _noised(self, y: Any, keys: Sequence[rng.Key | None], index: int) -> Any:
        """One field, a tensor (N, ...) or a list with one tensor a row. Each row is noised by itself, so that its last
        digits depend on no other."""
        rows = [one if key is None else noised(one, self.left[key[1]], self.how.scale, (*key, index))
                for one, key in zip(y, keys, strict=True)]  # fmt: skip
        return rows if isinstance(y, list) else torch.stack(rows)
