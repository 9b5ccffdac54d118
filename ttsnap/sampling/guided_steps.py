"""Steps guided by a reward's gradient, which say how likely the plain sampler was to take them.

A plain step draws x_s = m + c xi. A guided one draws x_s = m + d + c kappa xi instead, with d and
kappa from the gradient g of the reward of the x0 estimate with respect to x_t. Its log ratio is

    log p(x_s | x_t) - log q(x_s | x_t) = |xi|^2 / 2 - |d + c kappa xi|^2 / (2 c^2) + D log kappa,

by which sequential Monte Carlo weighs, so that its target stays what it was (Particles.log_ratio;
smc.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.core.utility import rising
from ttsnap.sampling import rng
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.kernels import GaussianKernel, Prediction

KINDS = ("dps", "twisted", "tilted")
_WRITTEN = re.compile(r"([^:]+)(?::([^:]*))??(?::(denoiser|x0)?)?(?::([0-9.]+)-([0-9.]+))?")
"""Kind, scale, what gradients go through, and the first and the last noise level."""


@dataclass(frozen=True)
class RewardGuidance:
    """How a reward's gradient guides the steps of a kernel.

    "dps": d = scale c g / |g|, a step of `scale` deviations uphill, after DPS (arXiv 2209.14687),
    which divides by a norm as well. Log weights spread by `scale` a step.

    "twisted": d = c^2 lam g, with lam from 0 to `scale` as min((1 + gamma)^k - 1, 1) rises. This is
    the proposal of DAS (arXiv 2501.05803), first-order optimal for the target p(x) exp(scale r(x)).
    Give smc's lam as the scale.

    "tilted": the mean stays, and the noise is sqrt(1 - scale^2) xi + scale sqrt(D) g / |g|, whose
    length is that of noise, after noise-tilted reverse kernels (arXiv 2606.18066).
    """

    kind: str = "dps"
    """One of KINDS."""
    scale: float = 1.0
    """Above 0, and below 1 for "tilted"."""
    through: str = "denoiser"
    """"denoiser": the gradient goes back through the evaluation that made the estimate. "x0": it
    stops at the estimate, whose slope in x_t is taken for that of standard normal data. That saves
    the backward pass."""
    first: float = 0.75
    """Noise level, in [0, 1], of the first step that is guided: estimates before say little."""
    last: float = 0.3
    """Noise level of the last step that is guided. The last step of all, which draws no noise,
    never is."""
    weights: tuple[float, ...] | None = None
    """Of the rewards, in their order; by default all alike."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.through not in ("denoiser", "x0"):
            raise ValueError(
                f"guidance is one of {KINDS}, through denoiser or x0, got {self.kind!r},"
                f" {self.through!r}"
            )
        if not (math.isfinite(self.scale) and self.scale > 0) or (
            self.kind == "tilted" and self.scale >= 1
        ):
            raise ValueError(
                f"guidance needs a positive scale, below 1 where tilted, got {self.scale}"
            )
        if not 0 <= self.last <= self.first <= 1:
            raise ValueError(
                f"guidance levels must be 0 <= last <= first <= 1, got {self.first} and {self.last}"
            )

    @classmethod
    def parse(cls, text: str | RewardGuidance) -> RewardGuidance:
        """Read "dps:1", "twisted:10", "tilted:0.1", with ":x0" after it, and levels as in
        "dps:1:x0:0.9-0.2".

        ValueError for anything else.
        """
        if isinstance(text, RewardGuidance):
            return text
        match = _WRITTEN.fullmatch(text.strip())
        try:
            if match is None:
                raise ValueError("it has other parts")
            kind, scale, through, first, last = match.groups()
            levels = (float(first), float(last)) if first else (cls.first, cls.last)
            return cls(kind, float(scale or cls.scale), through or cls.through, *levels)
        except ValueError as error:
            raise ValueError(
                f"cannot read guidance {text!r}: {error}; write it like dps:1, twisted:10,"
                " tilted:0.1, dps:1:x0, or dps:1:x0:0.9-0.2 for noise levels"
            ) from None

    def steps(self, grid: Grid) -> tuple[bool, ...]:
        """(K,) which steps are guided."""
        levels = np.asarray(grid.levels[:-1])
        inside = (levels <= self.first + 1e-9) & (levels >= self.last - 1e-9)
        inside[-1] = False
        return tuple(inside.tolist())

    def tempered(self, grid: Grid) -> Tensor:
        """(K,) float64, lam of the steps for "twisted"."""
        end = grid.steps
        return torch.tensor([self.scale * rising(k + 1, end) for k in range(end)]).double()


class GuidedKernel:
    """The steps of a kernel on a grid, guided."""

    def __init__(self, kernel: GaussianKernel, guidance: RewardGuidance, grid: Grid) -> None:
        self.kernel = kernel
        self.guidance = guidance
        self._lam = guidance.tempered(grid)

    def step(
        self,
        x: Tensor,
        prediction: Prediction,
        gradient: Tensor,
        k: Tensor,
        keys: Sequence[rng.Source],
    ) -> tuple[Tensor, Tensor]:
        """A guided step of x (N, ...) at steps k (N,), and its log ratio (N,) float64.

        gradient (N, ...) of the reward at x. Where it is 0 or not finite, the step is the plain
        one.
        """
        scale = self.guidance.scale
        mean, std = self.kernel.moments(x, prediction, k)
        finite = rows(gradient.flatten(1).isfinite().all(1), gradient)
        g = torch.where(finite, gradient, 0.0).to(mean.dtype)
        size = g.flatten(1).norm(dim=1)
        unit = g / rows(torch.where(size > 0, size, 1.0), g)
        c = rows(std, mean)
        d = mean[0].numel()
        xi = rng.noise(keys, mean)
        kappa = torch.ones(len(x), dtype=torch.float64, device=mean.device)
        if self.guidance.kind == "dps":
            shift = scale * c * unit
        elif self.guidance.kind == "twisted":
            shift = c**2 * rows(self._lam[k], mean) * g
        else:
            shift = scale * math.sqrt(d) * c * unit
            kappa = torch.where(size > 0, kappa * math.sqrt(1 - scale**2), kappa)
        moved = mean + shift + c * rows(kappa, mean) * xi
        # in deviations
        away = (shift / torch.where(c > 0, c, 1.0) + rows(kappa, mean) * xi).flatten(1).double()
        ratio = (xi.flatten(1).double().square() - away.square()).sum(1) / 2 + d * kappa.log()
        return moved.to(x.dtype), ratio
