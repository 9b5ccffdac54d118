"""A guider under ttsnap's own kernels: steps that branch, draw noise by key, or go back, for particle methods."""

from __future__ import annotations

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines.comfyui.guided import Decoder, GuidedCall, GuidedDenoiser, Previewer
from ttsnap.sampling.denoiser import Can
from ttsnap.sampling.interpolants import Interpolant, Linear, LinearVP, level, rows, transfer
from ttsnap.sampling.kernels import Ode, Prediction
from ttsnap.sampling.paths import make_path, times_on


class PathDenoiser(GuidedDenoiser):
    """A guider along a path, one evaluation a step. x is scaled as on the path.

    ComfyUI's models have x = (1 - sigma) x0 + sigma eps, the linear path, or x = x0 + sigma eps, which is a
    variance-preserving path after division by sqrt(1 + sigma^2).
    """

    def __init__(
        self, guided: GuidedCall, sampler: SamplerOptions, vae: Decoder, previewer: Previewer | None = None
    ) -> None:
        super().__init__(guided, vae, previewer)
        self.can |= {Can.PATH}
        own, sigma = own_path(guided), guided.sigmas[:-1].double().cpu()
        self.path = own if sampler.path is None else make_path(sampler.path)
        self.times = times_on(self.path, sampler.times, sigma if guided.flow else sigma / (1 + sigma))
        t, scale = transfer(own, self.path, self.times[:-1])
        self.sigmas = t if guided.flow else t / own.alpha(t)
        """(K,) float64, the guider's noise levels."""
        self.scale = scale if guided.flow else scale * own.alpha(t)
        """(K,) float64, by which latents of the guider are multiplied."""
        self.grid = Grid((*level(self.path, self.times[:-1]).tolist(), 0.0))
        self.kernel = Ode(self.path, self.times)

    def in_model(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return x / rows(self.scale[step], x), self.sigmas[step].float()

    def begin_from(self, latent: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        sigma = self.sigmas[0].to(noise.device, torch.float32)
        return self.guided.noised(noise, latent, sigma) * float(self.scale[0])

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        def call(x: Tensor, sigma: Tensor, here: Tensor) -> Tensor:
            return self.guided.painted(x, sigma, x if self.guided.mask is None else self.noise_of(cond[here]))

        x0 = self.by_level(call, *self.in_model(x, step))
        return Prediction(x0, x0)


def own_path(guided: GuidedCall) -> Interpolant:
    """The path of a guider's model: for models that keep x0 unscaled, with t = sigma / sqrt(1 + sigma^2)."""
    return Linear() if guided.flow else LinearVP()
