"""Kernels: how a particle goes from grid point k to k + 1, given the network's prediction at k.

All take rows at different steps in one call and compute in float32 (float64 for float64 latents) whatever the
model's dtype. Noise comes by key (rng.py), so the batch does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ttsnap import rng
from ttsnap.interpolants import Interpolant, eps_from_x0, rows, score_from_x0, velocity_from_x0


class Prediction(NamedTuple):
    """One guided evaluation: `out` in the scheduler's own parametrisation, and the x0 estimate; both (N, ...).

    features: (N, D, h, w) hidden states of the conditional pass, where the denoiser was asked to capture them.
    """

    out: Tensor
    x0: Tensor
    features: Tensor | None = None


class Kernel(Protocol):
    """Where a grid step takes several evaluations (Grid.evals), k counts evaluations, and one call follows each."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise; only then do children of one particle come apart."""

    def step(self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Key]) -> Tensor:
        """x (N, ...) at steps k (N,) long -> x at steps k + 1, in x's dtype."""


@runtime_checkable
class RememberingKernel(Protocol):
    """A kernel whose step depends on more than x: earlier predictions, or the state of a particle's generator.

    What a particle remembers is opaque, and never changed in place: several children may start from it.
    """

    stochastic: bool

    def begin(self, key: rng.Key, generator: torch.Generator) -> Any:
        """What a particle (seed, branch) remembers at first; its initial noise was just drawn from `generator`."""

    def step_from(
        self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Key], memory: Sequence[Any]
    ) -> tuple[Tensor, list[Any]]:
        """As Kernel.step, with what each row remembers (N,), before and after."""


@dataclass(frozen=True)
class FlowEuler:
    """diffusers' FlowMatchEulerDiscreteScheduler.step, exactly, with a step of its own for every row.

    sigmas (K+1,) float32 from the scheduler; `stochastic` is its `stochastic_sampling` (full renoise each step).
    """

    sigmas: Tensor
    stochastic: bool = False

    def step(self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Key]) -> Tensor:
        out, wide = prediction.out, x.float()
        now, after = rows(self.sigmas[k], wide), rows(self.sigmas[k + 1], wide)
        if self.stochastic:
            moved = (1 - after) * (wide - now.to(out.dtype) * out) + after * rng.noise(keys, wide)
        else:
            # The step is rounded to the model's dtype, as torch does to diffusers' scalar.
            moved = wide + (after - now).to(out.dtype) * out
        return moved.to(out.dtype)


@dataclass(frozen=True)
class Ode:
    """Deterministic step along the probability-flow ODE: x_s = alpha_s x0 + sigma_s eps with the estimate held.

    That is Euler for the linear interpolant and DDIM (eta 0) for others. times (K+1,) falling to 0.
    """

    path: Interpolant
    times: Tensor
    stochastic: bool = False

    def step(self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Key]) -> Tensor:
        wide, x0 = _wide(x), _wide(prediction.x0)
        t, s = self.times[k], self.times[k + 1]
        eps = eps_from_x0(self.path, wide, x0, t)
        return (rows(self.path.alpha(s), wide) * x0 + rows(self.path.sigma(s), wide) * eps).to(x.dtype)


def power(scale: float = 3.0, exponent: float = 2.0) -> Callable[[Tensor], Tensor]:
    """Diffusion coefficient g(t) = scale * t ** exponent; RBF uses 3 t^2 (arXiv 2503.19385)."""
    return lambda t: scale * t**exponent


RBF_DIFFUSION = power(3.0, 2.0)


@dataclass(frozen=True)
class Sde:
    """Euler-Maruyama on the reverse SDE with the ODE's marginals (arXiv 2503.19385, Proposition 1).

    x_{t-h} = x - (u - g^2/2 score) h + g sqrt(h) xi, for any g(t) >= 0. The last step is the ODE's: it returns the
    x0 estimate without noise.
    """

    path: Interpolant
    times: Tensor
    g: Callable[[Tensor], Tensor] = RBF_DIFFUSION
    stochastic: bool = True

    def step(self, x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[rng.Key]) -> Tensor:
        wide, x0 = _wide(x), _wide(prediction.x0)
        t, h = self.times[k], self.times[k] - self.times[k + 1]
        g = self.g(t)
        drift = velocity_from_x0(self.path, wide, x0, t)
        drift = drift - rows(g**2 / 2, wide) * score_from_x0(self.path, wide, x0, t)
        moved = wide - drift * rows(h, wide) + rows(g * h.sqrt(), wide) * rng.noise(keys, wide)
        last = rows(k + 1 == len(self.times) - 1, wide)
        return torch.where(last, x0, moved).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


KERNELS: dict[str, Callable[..., Kernel]] = {
    "pipeline": lambda denoiser: denoiser.kernel,
    "ode": lambda denoiser: Ode(denoiser.path, denoiser.times),
    "sde": lambda denoiser: Sde(denoiser.path, denoiser.times),
}
"""Kernel by name, for a Denoiser (live.py)."""
