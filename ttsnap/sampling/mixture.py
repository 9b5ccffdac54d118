"""A Gaussian mixture as a denoiser with the exact score: the known answer behind tests, and a toy
to learn with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.sampling.denoiser import Costs, Denoiser
from ttsnap.sampling.interpolants import Interpolant, Linear, level, rows, velocity_from_x0
from ttsnap.sampling.kernels import Kernel, Ode, Prediction


class MixtureDenoiser(Denoiser):
    """x0 ~ sum_i weights[i] N(means[i], stds[i]^2 I) in D dimensions; E[x0 | x_t] in closed form.

    means (M, D), stds (M,), weights (M,), float64. With `by_prompt` (P, D) prompt j's mixture is
    moved by by_prompt[j % P]. steps: how many, or the times (K+1,) of the path themselves. `decode`
    squashes the first three coordinates into one RGB pixel (N, 3, 1, 1).
    """

    passes_per_nfe = 1
    device = torch.device("cpu")

    def __init__(
        self,
        means: Tensor,
        stds: Tensor,
        weights: Tensor,
        *,
        steps: int | Tensor = 20,
        path: Interpolant | None = None,
        by_prompt: Tensor | None = None,
    ) -> None:
        self.means = means.double()
        self.stds = stds.double()
        self.weights = weights.double() / weights.sum()
        self.path: Interpolant = path if path is not None else Linear()
        times = (
            steps
            if isinstance(steps, Tensor)
            else torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        )
        self.times = times.double()
        self.grid = Grid(tuple(level(self.path, self.times).tolist()))
        self.kernel: Kernel = Ode(self.path, self.times)
        self._by_prompt = torch.zeros(1, means.shape[1]) if by_prompt is None else by_prompt
        self._offset = self._by_prompt[:1].double()

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        at = [j % len(self._by_prompt) for j in range(len(prompts))]
        self._offset = self._by_prompt[at].double()

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack(
            [torch.randn(self.means.shape[1], generator=g) for g in generators]
        ).double()

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        t = self.times[step]
        x0 = (
            self.posterior_mean(x - rows(self.path.alpha(t), x) * self._offset[cond], t)
            + self._offset[cond]
        )
        # The velocity's formula divides by sigma; at t = 0 there is nothing left to predict.
        return Prediction(velocity_from_x0(self.path, x, x0, t), x0)

    def posterior_mean(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t = x]: x (N, D), t (N,)."""
        a = self.path.alpha(t)[:, None]
        s = self.path.sigma(t)[:, None]
        variance = a**2 * self.stds**2 + s**2  # (N, M)
        away = x[:, None] - a[..., None] * self.means  # (N, M, D)
        d = x.shape[1]
        log_p = self.weights.log() - 0.5 * (away**2).sum(-1) / variance - 0.5 * d * variance.log()
        gain = a * self.stds**2 / variance
        return (log_p.softmax(1)[..., None] * (self.means + gain[..., None] * away)).sum(1)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.sigmoid(x0[:, :3]).float()[..., None, None]

    def costs(self) -> Costs:
        m, d = self.means.shape
        return Costs(float(8 * m * d), float(d))
