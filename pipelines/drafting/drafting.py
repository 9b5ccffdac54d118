"""Drafts of a denoiser: the same call with the drafter's network, at times that may differ from the sampler's."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from weakref import proxy

import torch
from torch import Tensor

from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.drafting.drafters import Drafter, DraftSpec, make_drafter
from ttsnap.pipelines.latents.convert import own_path, timestep_unit
from ttsnap.pipelines.memory.flops import counted_draft
from ttsnap.sampling.denoiser import Can
from ttsnap.sampling.drafts import call_times, guess, unchecked
from ttsnap.sampling.interpolants import level, rows


def use_drafter(denoiser: PipelineDenoiser, spec: DraftSpec) -> None:
    """Set the drafter of a denoiser (drafters.make_drafter). ValueError where it cannot draft."""
    denoiser.must(Can.DRAFT)
    # Its denoiser is held weakly, so that one that is dropped goes at once, and its networks with it.
    drafts = Drafting(proxy(denoiser), make_drafter(denoiser.pipe, denoiser.network, spec))
    drafts.twin()  # refuses guidance that this call cannot make
    denoiser.drafts = drafts


@dataclass(frozen=True)
class Drafting:
    """Guesses finished images of a denoiser's call by a drafter (ttsnap.sampling.denoiser.Drafts)."""

    denoiser: PipelineDenoiser
    drafter: Drafter

    @property
    def calls(self) -> int:
        return self.drafter.calls

    @property
    def passes(self) -> int:
        return self.twin().passes_per_nfe

    @torch.no_grad()
    def guess(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        twin, schedule, path = self.twin(), self.denoiser.schedule, own_path(self.denoiser.schedule)
        position = torch.from_numpy(self.denoiser.grid.calls)[step]
        alpha, sigma = schedule.alpha[position].double(), schedule.sigma[position].double()
        # Onto the path that the network was trained on, at equal signal-to-noise ratio. Most models are there already.
        t = path.inverse_ratio(alpha / sigma)
        scale = torch.hypot(alpha, sigma) / torch.hypot(path.alpha(t), path.sigma(t))
        wide = x if x.dtype == torch.float64 else x.float()
        unit, each = timestep_unit(schedule, path), torch.arange(len(x))

        def estimate(at: Tensor, time: Tensor) -> Tensor:
            timestep = (time * unit).float().to(x.device, non_blocking=True)
            out = twin.guided(at.to(x.dtype), timestep, position, cond).out
            there = replace(schedule, alpha=path.alpha(time), sigma=path.sigma(time), scale=None)
            return there.x0(at, out, each)

        return guess(path, estimate, wide / rows(scale, wide), t, calls, self.drafter.settings.first_time)

    def level(self, step: int, calls: int) -> float:
        schedule, position = self.denoiser.schedule, int(self.denoiser.grid.calls[step])
        path = own_path(schedule)
        t = path.inverse_ratio(schedule.alpha[position].double() / schedule.sigma[position].double())
        return float(level(path, call_times(t, calls, self.drafter.settings.first_time)[-1][1]))

    def flops(self) -> float:
        return counted_draft(self.denoiser, self.twin)

    def doubt(self, model: str) -> str | None:
        """A warning where the drafter was not checked for this model (by its name), number of steps and guidance."""
        return unchecked(self.drafter.settings, model, self.denoiser.grid.steps, self.denoiser.scale)

    def twin(self) -> PipelineDenoiser:
        """A copy of the present denoiser, with its encoded prompts, and the drafter's network and guidance.

        ValueError for guidance that needs negative prompts, where the call encodes none.
        """
        own, twin = self.denoiser.guidance, copy.copy(self.denoiser)
        vars(twin).update(pipe=copy.copy(self.denoiser.pipe), drafts=None, _stepped=None)
        vars(twin.pipe)[self.denoiser.network] = self.drafter.net
        scale = self.drafter.settings.guidance
        if scale is not None and twin.embeds:
            twin.embedded_scale, scale = scale, None
        if scale is not None and not own.guided:
            raise ValueError(f"this draft is made at guidance {scale:g}, for which this call of "
                             f"{type(twin).__name__} encodes no negative prompt; guide by more than 1")  # fmt: skip
        twin.guidance = replace(own, guided=scale is not None, scale=own.scale if scale is None else scale,
                                estimates=None)  # fmt: skip
        twin.passes_per_nfe = twin.guidance.passes
        return twin
