"""Drafts by a second guider: another MODEL, the same with a distilled LoRA, or the model told of
less noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.options.sampler import Finish
from ttsnap.pipelines.comfyui.guided import GuidedCall, GuidedDenoiser, is_flow, levels
from ttsnap.pipelines.comfyui.paths import times_of
from ttsnap.sampling.drafts import begins_as_noise, call_times, fitting, guess, sized
from ttsnap.sampling.interpolants import Interpolant, Linear, LinearVP, level
from ttsnap.sampling.starts import FromDrafts


@dataclass(frozen=True)
class GuiderDrafts:
    """Guesses of finished latents by a drafter (ttsnap.sampling.denoiser.Drafts)."""

    denoiser: GuidedDenoiser
    drafter: GuidedCall
    """The drafter's guider, inside a `guider.sample` of its own, from noise."""
    calls: int = 1
    first_time: float = 1.0
    """What the drafter is told at its first call, as a share of the true time."""

    def finished(self, image_nfe: int) -> FromDrafts:
        """Particles begin from drafts of their noise, as in ComfyUI's image-to-image. image_nfe:
        evaluations of an image from noise."""
        level = self.level_told(self.drafter.sigmas[:1], self.calls)
        return FromDrafts(self.of_noise, self.denoiser.begin_from, self.calls, level, image_nfe)

    def of_noise(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Drafts of initial noise (N, ...)."""
        x = self.drafter.noised(noise, self.drafter.latent.expand_as(noise))
        sigma = self.drafter.sigmas[:1].expand(len(noise))
        return self.guessed(x, sigma, noise, cond, self.calls)

    @property
    def path(self) -> Interpolant:
        """Of latents as guiders take them."""
        return Linear() if self.drafter.flow else Unscaled()

    @property
    def passes(self) -> int:
        return self.drafter.passes(hooked=False)

    @torch.no_grad()
    def guess(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        noise = x if self.drafter.mask is None else self.denoiser.noise_of(cond)
        return self.guessed(*self.denoiser.in_model(x, step), noise, cond, calls)

    def guessed(self, x: Tensor, sigma: Tensor, noise: Tensor, cond: Tensor, calls: int) -> Tensor:
        """The guess from latents (N, ...) as guiders take them, at noise levels (N,), of initial
        noise (N, ...)."""

        def estimate(at: Tensor, time: Tensor) -> Tensor:
            told = self.path.sigma(time).to(at.device, torch.float32)
            return self.denoiser.ask(
                self.drafter, self.drafter.painted, cond, at.float(), told, noise
            )

        return guess(
            self.path, estimate, x, times_of(sigma, flow=self.drafter.flow), calls, self.first_time
        )

    def level(self, step: int, calls: int) -> float:
        _, sigma = self.denoiser.in_model(self.denoiser.guided.latent, torch.tensor([step]))
        return self.level_told(sigma, calls)

    def level_told(self, sigma: Tensor, calls: int) -> float:
        """The noise level that the last call of a guess is told from noise level sigma (1,)."""
        told = call_times(times_of(sigma, flow=self.drafter.flow), calls, self.first_time)[-1][1]
        return float(level(self.path, told))

    def flops(self) -> float:
        return 0.0  # as GuidedDenoiser.costs


class Unscaled(LinearVP):
    """x = x0 + sigma eps, at the times of equal signal-to-noise ratio."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t / super().alpha(t)


def finishing_sigmas(
    finish: Finish, schedule: Callable[[int], Tensor], steps: int, model: Any
) -> tuple[int, Tensor]:
    """Where drafts are finished: a number of steps N, and the sigmas (R+1,) at the end of this
    schedule of so many.

    N is `steps` or, where `finish` says how many are left, one that leaves as many. ValueError
    where none does, and where nothing of a draft would be left. schedule: the sigmas of a number of
    steps.
    model: a BaseModel.
    """
    flow = is_flow(model)
    numbers = sized(Grid(levels(schedule(steps), flow=flow)), finish) or [steps]
    sigmas = [schedule(number) for number in numbers]
    grids = [Grid(levels(each, flow=flow)) for each in sigmas]
    best = fitting(grids, finish)
    if (why := begins_as_noise(grids[best], finish)) is not None:
        raise ValueError(why)
    return numbers[best], sigmas[best][grids[best].nearest(finish.level) :]
