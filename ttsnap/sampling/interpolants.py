"""Interpolants x_t = alpha(t) x0 + sigma(t) eps between data (t = 0) and noise (t = 1).

An interpolant is four functions and the inverse of its signal-to-noise ratio rho = alpha / sigma;
everything else is derived (RBF, arXiv 2503.19385, section 4 and appendix; Stochastic Interpolants,
arXiv 2303.08797). Times are tensors; arithmetic runs in their dtype, so pass float64 for exact
work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ttsnap.sampling import rng


class Interpolant(Protocol):
    """alpha and sigma are in [0, 1], alpha falls and sigma rises with t."""

    def alpha(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor) -> Tensor: ...
    def d_alpha(self, t: Tensor) -> Tensor: ...
    def d_sigma(self, t: Tensor) -> Tensor: ...
    def inverse_ratio(self, rho: Tensor) -> Tensor:
        """The t at which alpha / sigma = rho, for rho in [0, inf]."""


@dataclass(frozen=True)
class Linear:
    """Rectified flow: alpha = 1 - t, sigma = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def inverse_ratio(self, rho: Tensor) -> Tensor:
        return 1 / (1 + rho)


@dataclass(frozen=True)
class VP:
    """Variance preserving: alpha = exp(-T/2), sigma^2 = 1 - alpha^2, T = (b1 - b0) t^2 / 2 + b0 t
    (2503.19385).

    At t = 1 a little signal is left; noisier points have t > 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"need 0 < beta_min < beta_max, got {self.beta_min}, {self.beta_max}")

    def _total(self, t: Tensor) -> Tensor:
        return 0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t

    def _rate(self, t: Tensor) -> Tensor:
        return (self.beta_max - self.beta_min) * t + self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._total(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._total(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self._rate(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Infinite at t = 0, as sigma starts like a square root."""
        return 0.5 * self._rate(t) * torch.exp(-self._total(t)) / self.sigma(t)

    def inverse_ratio(self, rho: Tensor) -> Tensor:
        total = torch.log1p(rho**-2.0)
        spread = self.beta_max - self.beta_min
        # The root of the quadratic, written without cancellation for small totals.
        t = 2 * total / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * spread * total))
        return torch.where(rho > 0, t, torch.full_like(t, torch.inf))


@dataclass(frozen=True)
class Cosine:
    """Trigonometric: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self.alpha(t)

    def inverse_ratio(self, rho: Tensor) -> Tensor:
        return torch.atan(1 / rho) * (2 / math.pi)


@dataclass(frozen=True)
class LinearVP:
    """Linear in the noise, variance preserving: sigma = t, alpha = sqrt(1 - t^2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt((1 - t) * (1 + t))

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        """Infinite at t = 1."""
        return -t / self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def inverse_ratio(self, rho: Tensor) -> Tensor:
        return 1 / torch.hypot(torch.ones_like(rho), rho)


class Discrete:
    """The noise schedule of a discrete-time model (DDPM), variance preserving, made continuous.

    `kept` (T,) holds alpha^2 at the timesteps 0..T-1 (diffusers' alphas_cumprod), falling; t = i /
    (T - 1) is timestep i, and log alpha / sigma is linear between. At t = 0 a little noise is left;
    ratios beyond the ends are cut to them.
    """

    def __init__(self, kept: Tensor) -> None:
        kept = kept.double().clamp(1e-12, 1 - 1e-12)  # zero terminal SNR: a finite log ratio
        if kept.ndim != 1 or len(kept) < 2 or bool((kept.diff() >= 0).any()):
            raise ValueError("alphas_cumprod must be one falling row")
        self.log_ratio = 0.5 * (kept.log() - (-kept).log1p())

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha / sigma at t, and its derivative."""
        table = self.log_ratio.to(t.device)
        where = t.double().clamp(0, 1) * (len(table) - 1)
        low = where.long().clamp(max=len(table) - 2)
        slope = table[low + 1] - table[low]
        return (table[low] + (where - low) * slope).to(t.dtype), (slope * (len(table) - 1)).to(
            t.dtype
        )

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self._at(t)[0]).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._at(t)[0]).sqrt()

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.sigma(t) ** 2 * self._at(t)[1]

    def d_sigma(self, t: Tensor) -> Tensor:
        return -self.sigma(t) * self.alpha(t) ** 2 * self._at(t)[1]

    def inverse_ratio(self, rho: Tensor) -> Tensor:
        rising = self.log_ratio.flip(0).to(rho.device)
        wanted = rho.double().log().clamp(rising[0], rising[-1])
        high = torch.searchsorted(rising, wanted.contiguous()).clamp(1, len(rising) - 1)
        part = (wanted - rising[high - 1]) / (rising[high] - rising[high - 1])
        return (1 - (high - 1 + part) / (len(rising) - 1)).to(rho.dtype)


def rows(value: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, ...) on like's device, in like's dtype where a float, to multiply rows of
    `like` (N, ...)."""
    dtype = like.dtype if value.is_floating_point() else value.dtype
    return value.to(like.device, dtype, non_blocking=True).view(-1, *[1] * (like.ndim - 1))


# Conversions. x, x0, eps, velocity and score are (N, ...); t is (N,). Limits at t = 0 and t = 1 are
# those of the formulas: they need sigma > 0.


def eps_from_x0(path: Interpolant, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The noise that x0 implies: (x - alpha x0) / sigma."""
    return (x - rows(path.alpha(t), x) * x0) / rows(path.sigma(t), x)


def velocity_from_x0(path: Interpolant, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """dx/dt = alpha' x0 + sigma' eps."""
    return rows(path.d_alpha(t), x) * x0 + rows(path.d_sigma(t), x) * eps_from_x0(path, x, x0, t)


def score_from_x0(path: Interpolant, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """grad log p_t(x) = -eps / sigma."""
    return -eps_from_x0(path, x, x0, t) / rows(path.sigma(t), x)


def ratio(path: Interpolant, t: Tensor) -> Tensor:
    """alpha / sigma, in [0, inf]."""
    return path.alpha(t) / path.sigma(t)


def level(path: Interpolant, t: Tensor) -> Tensor:
    """sigma / (alpha + sigma): the rectified-flow time of equal signal-to-noise ratio."""
    a = path.alpha(t)
    s = path.sigma(t)
    return s / (a + s)


def transfer(source: Interpolant, target: Interpolant, s: Tensor) -> tuple[Tensor, Tensor]:
    """Time and scale that carry `source` to `target` at equal SNR: x_target(s) = scale *
    x_source(t).

    Returns (t, scale), each shaped like s. A network trained on `source` is called at t on x_target
    / scale; its x0 and eps hold unchanged (2503.19385, eq. for the transferred velocity follows
    from them).
    """
    a = target.alpha(s)
    b = target.sigma(s)
    t = source.inverse_ratio(a / b)
    return t, torch.hypot(a, b) / torch.hypot(source.alpha(t), source.sigma(t))


def widened(x: Tensor) -> Tensor:
    """In float32 at least, in which all steps are computed."""
    return x if x.dtype == torch.float64 else x.float()


def forward(
    path: Interpolant, x: Tensor, t: Tensor, s: Tensor, keys: Sequence[rng.Source]
) -> Tensor:
    """x (N, ...) at times t (N,) noised forward to later times s (N,), exactly: a draw of q(x_s |
    x_t).

    x_s = (alpha_s / alpha_t) x_t + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) xi. Search over
    paths uses it (arXiv 2501.09732). Pure noise (alpha_t = 0) stays as it is.
    """
    wide = widened(x)
    a = path.alpha(s)
    b = path.sigma(s)
    ratio = torch.where(path.alpha(t) > 0, a / path.alpha(t).clamp(min=1e-300), torch.ones_like(a))
    spread = torch.sqrt((b**2 - (ratio * path.sigma(t)) ** 2).clamp(min=0.0))
    return (rows(ratio, wide) * wide + rows(spread, wide) * rng.noise(keys, wide)).to(x.dtype)
