"""The denoiser's side of drafts: the same call with another network, at times that need not be the sampler's."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from ttsnap.pipelines.drafting.drafters import Drafter, DraftSpec, make_drafter
from ttsnap.pipelines.latents.convert import own_path, timestep_unit
from ttsnap.pipelines.latents.schedule import Schedule

from ttsnap.sampling.denoiser import Denoiser, no_drafter
from ttsnap.sampling.drafts import call_times, guess, unchecked
from ttsnap.sampling.interpolants import level, rows


class DraftingDenoiser(Denoiser):
    """Guesses finished images by a drafter, where one is set. What is computed with here is `PipelineDenoiser`'s."""

    network: ClassVar[str]
    pipe: Any
    schedule: Schedule
    guided: bool
    cfg_scale: float
    drafter: Drafter | None = None

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        """The network's output, as in PipelineDenoiser."""
        raise NotImplementedError

    def embed_scale(self, scale: float) -> bool:
        """Give a network that reads a scale of guidance this one; False where it reads none."""
        return False

    def use_drafter(self, spec: DraftSpec) -> None:
        """Draft by this from now on (drafters.make_drafter). ValueError where that cannot work."""
        self.drafter = make_drafter(self.pipe, self.network, spec)
        self.drafting()  # refuses guidance that this call cannot make

    @property
    def drafts(self) -> bool:
        return self.drafter is not None

    @property
    def draft_calls(self) -> int:
        return 0 if self.drafter is None else self.drafter.calls

    @property
    def passes_per_draft(self) -> int:
        return 0 if self.drafter is None else self.drafting().passes_per_nfe

    @torch.no_grad()
    def draft(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        twin, schedule, path = self.drafting(), self.schedule, own_path(self.schedule)
        first = self._required().settings.first_time
        position = torch.from_numpy(self.grid.calls)[step]
        alpha, sigma = schedule.alpha[position].double(), schedule.sigma[position].double()
        # Onto the path that the network was trained on, at equal signal-to-noise ratio; for most it is there already.
        t = path.inverse_ratio(alpha / sigma)
        scale = torch.hypot(alpha, sigma) / torch.hypot(path.alpha(t), path.sigma(t))
        wide = x if x.dtype == torch.float64 else x.float()
        unit, each = timestep_unit(schedule, path), torch.arange(len(x))

        def estimate(at: Tensor, told: Tensor) -> Tensor:
            time = (told * unit).float().to(x.device, non_blocking=True)
            out = twin.output(at.to(x.dtype), time, position, cond)
            there = replace(schedule, alpha=path.alpha(told), sigma=path.sigma(told), scale=None)
            return there.x0(at, out, each)

        return guess(path, estimate, wide / rows(scale, wide), t, calls, first)

    def draft_level(self, step: int, calls: int) -> float:
        first, position = self._required().settings.first_time, int(self.grid.calls[step])
        path, schedule = own_path(self.schedule), self.schedule
        t = path.inverse_ratio(schedule.alpha[position].double() / schedule.sigma[position].double())
        return float(level(path, call_times(t, calls, first)[-1][1]))

    @property
    def scale(self) -> float:
        """The guidance of this call: of its two passes, or what the network reads of it."""
        return self.cfg_scale

    def doubt_of_draft(self, model: str) -> str | None:
        """A sentence where the drafter was not checked for this model (by its name), number of steps and guidance."""
        return None if self.drafter is None else unchecked(self.drafter.settings, model, self.grid.steps, self.scale)

    def drafting(self) -> Self:
        """This denoiser as it is now, with what it has encoded, but with the drafter's network and guidance.

        It is made for each guess, and shares all but its own settings. ValueError without a drafter, and for guidance
        that needs passes which this call does not prepare.
        """
        drafter, twin = self._required(), copy.copy(self)
        # What is kept of this call's estimates and steps is the sampler's matter.
        vars(twin).update(pipe=copy.copy(self.pipe), drafter=None, _estimate_scale=None, _stepped=None)
        vars(twin.pipe)[self.network] = drafter.net
        scale = drafter.settings.guidance
        twin.guided = scale is not None and not twin.embed_scale(scale)
        if scale is not None and twin.guided:
            if not self.guided:
                raise ValueError(f"this draft is made at guidance {scale:g}, for which this call of "
                                 f"{type(self).__name__} encodes no negative prompt; guide by more than 1")  # fmt: skip
            twin.cfg_scale = scale
        twin.passes_per_nfe = 2 if twin.guided else 1
        return twin

    def _required(self) -> Drafter:
        if self.drafter is None:
            raise no_drafter(self)
        return self.drafter
