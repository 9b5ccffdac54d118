"""Kernels: how a particle goes from grid point k to k + 1, given the network's prediction at k.

All take rows at different steps in one call and compute in float32 (float64 for float64 latents)
whatever the model's dtype. Noise comes by key (rng.py), so the batch does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ttsnap.core.names import FieldError, unknown
from ttsnap.sampling import rng
from ttsnap.sampling.interpolants import (
    Interpolant,
    eps_from_x0,
    rows,
    score_from_x0,
    velocity_from_x0,
    widened,
)
from ttsnap.sampling.paths import DIFFUSIONS, RBF_DIFFUSION


class Prediction(NamedTuple):
    """One guided evaluation: `out` in the scheduler's own parametrisation, and the x0 estimate;
    both (N, ...)."""

    out: Tensor
    x0: Tensor
    x: Tensor | None = None
    """(N, ...) the latents that were evaluated, where the model's own code may change them before;
    None: as given."""

    def detached(self) -> Prediction:
        """The same without a graph."""
        x = None if self.x is None else self.x.detach()
        return Prediction(self.out.detach(), self.x0.detach(), x)


KernelState: TypeAlias = Any
"""What one particle carries from step to step beside its latent. Only the kernel that made it looks
inside; None for kernels that keep no history. It is never changed in place, since several children
may start from it."""


class Kernel(Protocol):
    """One step of many particles. Where a grid step takes several evaluations (Grid.evals), `k`
    counts evaluations, and one call follows each.

    A kernel without a history derives from `Stateless`, and then has `stochastic` and `step` alone
    to write.
    """

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise; only then do children of one particle come apart."""

    @property
    def keeps_history(self) -> bool:
        """Whether a step depends on more than x: on earlier predictions, or on the state of a
        particle's generator.

        Only kernels without a history can take particles back to noisier steps, draw noise near
        other noise, or ascend in initial noise.
        """

    def init(
        self, noise: Tensor, key: rng.Key, generator: torch.Generator, guess: Tensor | None = None
    ) -> KernelState:
        """The state of a new particle `key` (seed, branch), whose initial noise (...) `generator`
        just drew.

        guess: the draft (...) that it begins from; None for one that begins as noise.
        """

    def step(
        self,
        x: Tensor,
        prediction: Prediction,
        k: Tensor,
        keys: Sequence[rng.Source],
        state: Sequence[KernelState],
    ) -> tuple[Tensor, Sequence[KernelState]]:
        """x (N, ...) at steps k (N,) long -> x at steps k + 1, in x's dtype; and the state of each
        row after the step.

        Row i draws its noise from keys[i] (rng.noise), never from a generator of the batch.
        state[i] is what `init` or the step before gave for that particle.
        """


class Stateless:
    """Base of kernels whose step depends on x and its prediction alone: their state is None."""

    keeps_history: ClassVar[bool] = False

    def init(
        self, noise: Tensor, key: rng.Key, generator: torch.Generator, guess: Tensor | None = None
    ) -> KernelState:
        return None


@runtime_checkable
class GaussianKernel(Kernel, Protocol):
    """A kernel whose step is a draw of N(mean, std^2 I): what guidance (guided_steps.py) can shift
    and weigh."""

    def moments(self, x: Tensor, prediction: Prediction, k: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, ...) at steps k (N,) -> mean (N, ...) and std (N,) of x at steps k + 1, both
        float32 or float64.

        std is 0 in the last step, whose mean is the x0 estimate.
        """


def draw(
    kernel: GaussianKernel,
    x: Tensor,
    prediction: Prediction,
    k: Tensor,
    keys: Sequence[rng.Source],
    state: Sequence[KernelState],
) -> tuple[Tensor, Sequence[KernelState]]:
    """A step of a GaussianKernel, in x's dtype. No noise is drawn where std is 0 in every row."""
    mean, std = kernel.moments(x, prediction, k)
    if bool((std > 0).any()):
        mean = mean + rows(std, mean) * rng.noise(keys, mean)
    return mean.to(x.dtype), state


@dataclass(frozen=True)
class Ode(Stateless):
    """Deterministic step along the probability-flow ODE: x_s = alpha_s x0 + sigma_s eps with the
    estimate held.

    That is Euler for the linear interpolant and DDIM (eta 0) for others. times (K+1,) falling to 0.
    """

    path: Interpolant
    times: Tensor
    stochastic: bool = False

    def step(
        self,
        x: Tensor,
        prediction: Prediction,
        k: Tensor,
        keys: Sequence[rng.Source],
        state: Sequence[KernelState],
    ) -> tuple[Tensor, Sequence[KernelState]]:
        return self.jump(x, prediction, k, k + 1), state

    def jump(self, x: Tensor, prediction: Prediction, k: Tensor, to: Tensor) -> Tensor:
        """From grid points k (N,) to later ones `to` (N,) in one step."""
        wide = widened(x)
        x0 = widened(prediction.x0)
        t = self.times[k]
        s = self.times[to]
        eps = eps_from_x0(self.path, wide, x0, t)
        moved = rows(self.path.alpha(s), wide) * x0 + rows(self.path.sigma(s), wide) * eps
        return torch.where(rows(to == len(self.times) - 1, wide), x0, moved).to(x.dtype)


@dataclass(frozen=True)
class Sde(Stateless):
    """Euler-Maruyama on the reverse SDE with the ODE's marginals (arXiv 2503.19385, Proposition 1).

    x_{t-h} = x - (u - g^2/2 score) h + g sqrt(h) xi, for any g(t) >= 0. The last step returns the
    x0 estimate.
    """

    path: Interpolant
    times: Tensor
    g: Callable[[Tensor], Tensor] = RBF_DIFFUSION
    stochastic: bool = True
    begin: float = 1.0
    """Time in (0, 1] from which noise is drawn; steps from noisier points are the ODE's. Below 1
    the initial noise decides most of the image, so that drafts of it tell something, and yet later
    branches differ."""

    def __post_init__(self) -> None:
        if not 0 < self.begin <= 1:
            raise ValueError(f"noise may begin at a time in (0, 1], got {self.begin:g}")

    def moments(self, x: Tensor, prediction: Prediction, k: Tensor) -> tuple[Tensor, Tensor]:
        wide = widened(x)
        x0 = widened(prediction.x0)
        t = self.times[k]
        h = self.times[k] - self.times[k + 1]
        g = self.g(t) if self.begin == 1 else torch.where(t <= self.begin + 1e-9, self.g(t), 0.0)
        drift = velocity_from_x0(self.path, wide, x0, t) - rows(g**2 / 2, wide) * score_from_x0(
            self.path, wide, x0, t
        )
        return _ending(self.times, k, wide - drift * rows(h, wide), x0, g * h.sqrt())

    step = draw

    def growth(self) -> float:
        """The largest standard deviation of x on the way while x0 estimates are 0: about 1 where
        steps keep the marginals. Steps that are too long for their noise multiply x; inf is an
        overflow."""
        k = torch.arange(len(self.times) - 2)  # without the last step, which is the x0 estimate
        one = torch.ones(len(k), dtype=torch.float64)
        none = torch.zeros(len(k), dtype=torch.float64)
        stds = [1.0]
        for factor, drawn in zip(*self.moments(one, Prediction(none, none), k), strict=True):
            stds.append(math.hypot(factor * stds[-1], drawn))
        return max(stds)


@dataclass(frozen=True)
class Ddim(Stateless):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c xi with the estimate held, for any path
    (DDIM, 2010.02502).

    c = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2), eq. 16 in terms of the path:
    eta 0 is the ODE's step, 1 the DDPM posterior, which is also k-diffusion's Euler ancestral step
    in these terms.
    """

    path: Interpolant
    times: Tensor
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def moments(self, x: Tensor, prediction: Prediction, k: Tensor) -> tuple[Tensor, Tensor]:
        t = self.times[k]
        s = self.times[k + 1]
        a = self.path.alpha(s)
        b = self.path.sigma(s)
        shrink = self.path.alpha(t) * b / (a * self.path.sigma(t))
        c = self.eta * b * torch.sqrt((1 - shrink**2).clamp(min=0.0))
        return _ending(self.times, k, *_toward(self.path, x, prediction.x0, t, s, c), c)

    step = draw


@dataclass(frozen=True)
class Renoise(Stateless):
    """x_s = alpha_s x0 + sigma_s xi: all noise is fresh, as consistency models sample (diffusers'
    stochastic Euler).

    Marginals are kept only where x0 is a sample, not a mean: with many steps of an ordinary model
    images lose variety.
    """

    path: Interpolant
    times: Tensor
    stochastic: bool = True

    def moments(self, x: Tensor, prediction: Prediction, k: Tensor) -> tuple[Tensor, Tensor]:
        t = self.times[k]
        s = self.times[k + 1]
        c = self.path.sigma(s)
        return _ending(self.times, k, *_toward(self.path, x, prediction.x0, t, s, c), c)

    step = draw


def _toward(
    path: Interpolant, x: Tensor, x0: Tensor, t: Tensor, s: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """alpha_s x0 + sqrt(sigma_s^2 - c^2) eps, to which c xi may be added, and x0; both float32 or
    float64."""
    wide = widened(x)
    x0 = widened(x0)
    eps = eps_from_x0(path, wide, x0, t)
    kept = torch.sqrt((path.sigma(s) ** 2 - c**2).clamp(min=0.0))
    return rows(path.alpha(s), wide) * x0 + rows(kept, wide) * eps, x0


def _ending(
    times: Tensor, k: Tensor, mean: Tensor, x0: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Moments of a step, but for rows whose next point is the image: they take the x0 estimate,
    without noise."""
    last = k + 1 == len(times) - 1  # also where a path ends with a little noise
    return torch.where(rows(last, mean), x0, mean), torch.where(last, 0.0, std)


MOST_GROWTH = 1e15
"""Of latents (Sde.growth), whose squares networks take in float32."""


class Timed(Protocol):
    """What kernels are made for, as every Denoiser is."""

    path: Interpolant
    times: Tensor
    """(K+1,) of the path at the grid points."""
    kernel: Kernel
    """The pipeline's own."""


KERNELS: dict[str, Callable[[Timed], Kernel]] = {
    "pipeline": lambda denoiser: denoiser.kernel,
    "ode": lambda denoiser: Ode(denoiser.path, denoiser.times),
    "sde": lambda denoiser: Sde(denoiser.path, denoiser.times),
    "ddim": lambda denoiser: Ddim(denoiser.path, denoiser.times),
    "ancestral": lambda denoiser: Ddim(denoiser.path, denoiser.times),
    "renoise": lambda denoiser: Renoise(denoiser.path, denoiser.times),
}
"""Kernel by name, for a denoiser."""


def make_kernel(spec: str | Kernel, denoiser: Timed) -> Kernel:
    """By a name of KERNELS, with numbers ("ddim:0.5", "sde:square:3:0.7"), or a Kernel. FieldError
    for unknown ones, and for noise under which latents overflow."""
    if not isinstance(spec, str):
        return spec
    kernel = _parsed(spec, denoiser)
    if isinstance(kernel, Sde) and kernel.growth() > MOST_GROWTH:
        overflow = f"draws so much noise that latents overflow in {len(kernel.times) - 1} steps"
        raise FieldError(
            "kernel", f"kernel {spec!r} {overflow}; give a smaller SCALE (the default is 3)"
        )
    return kernel


def _parsed(spec: str, denoiser: Timed) -> Kernel:
    name, *options = spec.split(":")
    try:
        if not options:
            return KERNELS[name](denoiser)
        if name == "ddim" and len(options) == 1:
            return Ddim(denoiser.path, denoiser.times, float(options[0]))
        if name == "sde" and len(options) <= 3:
            scale, begin = (
                float(number) for number in [*options[1:], *("3", "1")[len(options) - 1 :]]
            )
            if not 0 <= scale < math.inf:
                raise ValueError("the scale must be finite and not negative")
            return Sde(
                denoiser.path,
                denoiser.times,
                DIFFUSIONS[options[0]](scale, denoiser.path),
                begin=begin,
            )
        raise ValueError("too many parts")
    except (KeyError, ValueError) as error:
        more = f", ddim:ETA, sde:DIFFUSION:SCALE:BEGIN with {', '.join(DIFFUSIONS)}"
        raise FieldError("kernel", unknown("kernel", spec, KERNELS, more)) from error
