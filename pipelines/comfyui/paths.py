"""A guider under ttsnap's own kernels: steps that branch, draw noise by key, or go back, for
particle methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.pipelines.comfyui.guided import GuidedCall, GuidedDenoiser, levels
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.interpolants import Interpolant, Linear, LinearVP, rows
from ttsnap.sampling.kernels import Ode, Prediction


class PathDenoiser(GuidedDenoiser):
    """A guider along the path of its model, one evaluation a step. x is scaled as on the path.

    ComfyUI's models have x = (1 - sigma) x0 + sigma eps, the linear path, or x = x0 + sigma eps,
    which is a variance-preserving path after division by sqrt(1 + sigma^2).
    """

    def __init__(self, guided: GuidedCall, vae: Any, previewer: Any = None) -> None:
        super().__init__(guided, vae, previewer)
        self.can |= {Capability.PATH}
        self.path = own_path(guided)
        self.times = times_of(guided.sigmas, flow=guided.flow)
        self.scale = torch.ones_like(self.times) if guided.flow else self.path.alpha(self.times)
        """(K+1,) float64, by which latents of the guider are multiplied."""
        self.grid = Grid(levels(guided.sigmas, flow=guided.flow))
        self.kernel = Ode(self.path, self.times)

    def in_model(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return x / rows(self.scale[step], x), self.guided.sigmas.cpu()[step].float()

    def begin_from(self, latent: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        return self.guided.noised(noise, latent) * float(self.scale[0])

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        def call(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
            return self.guided.painted(
                x, sigma, x if self.guided.mask is None else self.noise_of(cond)
            )

        x0 = self.by_level(call, *self.in_model(x, step), cond)
        return Prediction(x0, x0)


def own_path(guided: GuidedCall) -> Interpolant:
    """The path of a guider's model: for models that keep x0 unscaled, with t = sigma / sqrt(1 +
    sigma^2)."""
    return Linear() if guided.flow else LinearVP()


def times_of(sigmas: Tensor, *, flow: bool) -> Tensor:
    """The times (N,) float64 on that path of noise levels (N,)."""
    s = sigmas.double().cpu()
    return s if flow else s / torch.sqrt(1 + s**2)
