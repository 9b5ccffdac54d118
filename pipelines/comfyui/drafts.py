"""Drafts by a second guider: another MODEL, the same with a distilled LoRA, or the model told of less noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttsnap.pipelines.comfyui.guided import GuidedCall, GuidedDenoiser
from ttsnap.pipelines.comfyui.paths import own_path
from ttsnap.sampling.drafts import call_times, guess
from ttsnap.sampling.interpolants import level, rows


@dataclass(frozen=True)
class GuiderDrafts:
    """Guesses of finished latents by a drafter (ttsnap.sampling.denoiser.Drafts)."""

    denoiser: GuidedDenoiser
    drafter: GuidedCall
    """The drafter's guider, inside a `guider.sample` of its own."""
    calls: int = 1
    first_time: float = 1.0
    """What the drafter is told at its first call, as a share of the true time."""

    @property
    def passes(self) -> int:
        return self.drafter.passes(hooked=False)

    @torch.no_grad()
    def guess(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        drafter, path = self.drafter, own_path(self.denoiser.guided)
        there, sigma = self.denoiser.in_model(x, step)
        t = self._time(sigma)

        def estimate(at: Tensor, time: Tensor) -> Tensor:
            told = time if drafter.flow else time / path.alpha(time)
            model_x = at if drafter.flow else at / rows(path.alpha(time), at)
            self.denoiser.residency.need(drafter.guider, model_x)
            made: Tensor = drafter.guider(
                model_x.float(), told.to(at.device, torch.float32), model_options=drafter.options, seed=None
            )
            return made

        on_path = there if drafter.flow else there * rows(path.alpha(t), there)
        return self.denoiser.kept(guess(path, estimate, on_path, t, calls, self.first_time))

    def level(self, step: int, calls: int) -> float:
        guided = self.denoiser.guided
        _, sigma = self.denoiser.in_model(guided.latent, torch.tensor([step]))
        return float(level(own_path(guided), call_times(self._time(sigma), calls, self.first_time)[-1][1]))

    def flops(self) -> float:
        return 0.0  # as GuidedDenoiser.costs

    def _time(self, sigma: Tensor) -> Tensor:
        """The times (N,) float64 of noise levels (N,) on the model's own path."""
        s = sigma.double().cpu()
        return s if self.denoiser.guided.flow else s / torch.sqrt(1 + s**2)
