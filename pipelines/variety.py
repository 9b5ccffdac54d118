"""Seeds of a pipeline that are kept apart: in groups, coupled by Repel (ttsnap.sampling.repel)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import floor
from typing import Any
from weakref import proxy

import torch
from torch import Tensor, nn

from ttsnap.options.option import Spec
from ttsnap.options.variety import Repel
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import Guidance
from ttsnap.pipelines.latents.schedule import Schedule
from ttsnap.pipelines.memory.flops import counted_coupled
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.kernels import Kernel, KernelState, make_kernel
from ttsnap.sampling.repel import coupled


def couple_seeds(denoiser: PipelineDenoiser, how: Repel, kernel: Spec) -> None:
    """Let particles begin where groups of them have taken the call's steps of noise levels from
    `how.level` on.

    kernel: by name, for all steps. ValueError for a model, a kernel or a schedule that does not
        allow for it.
    """
    denoiser.must(Capability.COUPLE)
    if not isinstance(kernel, str):
        raise ValueError(
            f"variety repel steps by a kernel of its name, and {type(kernel).__name__} is an"
            " object; name one, as kernel='ode'"
        )
    grid = denoiser.grid
    steps = sum(level >= how.level - 1e-6 for level in grid.levels)
    if not 0 < steps < grid.steps:
        raise ValueError(
            f"variety repel couples the steps of noise levels from {how.level:g} on, which are"
            f" {steps} of {grid.steps} here, and leaves at least one free; set the level, as in"
            f" repel:{how.size}:{floor(100 * grid.levels[0]) / 100:g}"
        )
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
        self,
        noise: Tensor,
        cond: Tensor,
        keys: Sequence[rng.Key],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Sequence[KernelState]]:
        twin = self.denoiser.by(self.net, schedule=self.whole, guidance=self.guidance)
        x = noise
        states: Sequence[KernelState] = [
            self.kernel.init(*each) for each in zip(noise, keys, generators, strict=True)
        ]
        for position in range(self.nfe):
            at = torch.full((len(x),), position)
            with self._coupled(twin, (keys[0][0], position)) if len(noise) > 1 else nullcontext():
                prediction = twin.predict(x, at, cond)
            sources = [(*key, position) for key in keys]
            x, states = self.kernel.step(x, prediction, at, sources, states)
        return x, states
