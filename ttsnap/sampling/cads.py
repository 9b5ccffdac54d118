"""CADS: the encoded prompt under noise that is annealed, so that seeds of one prompt differ more.

CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed Sampling (arXiv 2310.17347, section 4).
Noise is keyed by seed and step: a winner needs its own seed alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttsnap.options.variety import Cads
from ttsnap.sampling import rng

STREAM = 2310
"""In keys, so that this noise is no other that a seed draws."""


def gamma(level: float, how: Cads) -> float:
    """The share of the prompt that is left at a noise level: 1 up to `how.low`, 0 from `how.high` on, and between them
    a line."""
    return min(1.0, max(0.0, (how.high - level) / (how.high - how.low)))


def noised(y: Tensor, left: float, scale: float, key: rng.Key) -> Tensor:
    """y <- sqrt(gamma) y + s sqrt(1 - gamma) n for one encoded prompt (...), brought back to y's mean and spread (psi
    = 1).

    left: gamma, in [0, 1]; scale: s, in units of y's spread. Zeros, which are padding, stay zeros, and are not counted.
    At gamma = 1 or s = 0 it is y.
    """
    wide = y if y.dtype == torch.float64 else y.float()
    there = wide != 0
    if left == 1 or scale == 0 or not there.any():
        return y

    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        std, mean = torch.std_mean(values[there], correction=0)
        return mean, std

    mean, std = moments(wide)
    noise = rng.noise([(STREAM, *key)], wide[None])[0]
    hat = left**0.5 * wide + scale * (1 - left) ** 0.5 * std * noise
    centre, spread = moments(hat)
    again = (hat - centre) / spread.clamp_min(1e-12) * std + mean
    return torch.where(there, again, 0).to(y.dtype)
