"""Methods that make seeds of a prompt differ more, as wrappers of a denoiser (benchmarks/variety.py compares them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsnap.options.variety import Repel
from ttsnap.pipelines.guidance import Texts, taken
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.repel import coupled

CADS_STREAM = 2310
"""In keys, so that this noise is no other that a seed draws."""


@dataclass(frozen=True)
class Plain:
    """The model as it is."""

    def set_up(self, d: Any) -> None:
        """Change a denoiser's call before anything is sampled."""

    def predict(self, d: Any, x: Tensor, k: int, cond: Tensor, seeds: Sequence[int]) -> Prediction:
        """One evaluation of rows x (N, ...) at step k, of prompts (N,) and seeds."""
        prediction: Prediction = d.predict(x, torch.full((len(x),), k), cond)
        return prediction


@dataclass(frozen=True)
class Scale(Plain):
    """Another guidance scale."""

    scale: float

    def set_up(self, d: Any) -> None:
        d.guidance = replace(d.guidance, scale=self.scale)


@dataclass(frozen=True)
class Interval(Plain):
    """Guidance only at noise levels in (low, high], by `scale` if that is given."""

    low: float
    high: float
    scale: float | None = None

    def set_up(self, d: Any) -> None:
        at = tuple(self.low < level <= self.high + 1e-9 for level in d.grid.levels[:-1])
        d.guidance = replace(d.guidance, at=at, scale=self.scale or d.guidance.scale)


@dataclass(frozen=True)
class Cads(Plain):
    """The encoded prompt under noise that is annealed: gamma is 1 up to noise level `low`, and 0 from `high` on."""

    scale: float
    low: float = 0.6
    high: float = 0.9
    psi: float = 1.0

    def predict(self, d: Any, x: Tensor, k: int, cond: Tensor, seeds: Sequence[int]) -> Prediction:
        gamma = float(np.clip((self.high - d.grid.levels[k]) / (self.high - self.low), 0, 1))
        if gamma == 1 or self.scale == 0:
            return super().predict(d, x, k, cond, seeds)
        texts: Texts = d.texts
        positive = [
            self.noised(field, gamma, [(CADS_STREAM, seed, k, i) for seed in seeds])
            for i, field in enumerate(taken(texts.positive, cond))
        ]
        negative = None if texts.negative is None else taken(texts.negative, cond)
        d.texts = Texts(positive, negative)
        try:
            return super().predict(d, x, k, torch.arange(len(x)), seeds)
        finally:
            d.texts = texts

    def noised(self, y: Tensor, gamma: float, keys: Sequence[rng.Key]) -> Tensor:
        """y (N, ...) as sqrt(gamma) y + scale sqrt(1 - gamma) std(y) noise, the share psi of it brought back to y's
        mean and spread. Zeros, which are padding, stay zeros."""
        wide = y.float()
        there, axes = wide != 0, tuple(range(1, y.ndim))

        def moments(values: Tensor) -> tuple[Tensor, Tensor]:
            n = there.sum(axes, keepdim=True)
            mean = (values * there).sum(axes, keepdim=True) / n
            return mean, (((values - mean) ** 2 * there).sum(axes, keepdim=True) / n).sqrt()

        mean, std = moments(wide)
        hat = gamma**0.5 * wide + self.scale * (1 - gamma) ** 0.5 * std * rng.noise(keys, wide)
        centre, spread = moments(hat)
        rescaled = (hat - centre) / spread * std + mean
        return ((self.psi * rescaled + (1 - self.psi) * hat) * there).to(y.dtype)


@dataclass(frozen=True)
class Repelled(Plain):
    """Groups of seeds that push each other apart down to noise level `level`, as `variety="repel"` does."""

    level: float = Repel().level
    factor: float = Repel().factor

    def predict(self, d: Any, x: Tensor, k: int, cond: Tensor, seeds: Sequence[int]) -> Prediction:
        if d.grid.levels[k] < self.level - 1e-6:
            return super().predict(d, x, k, cond, seeds)
        how = Repel(level=self.level, factor=self.factor)
        made = []
        for first in range(0, len(x), how.size):
            part = slice(first, first + how.size)
            with coupled(d.net, how._replace(size=len(x[part])), d.image_tokens, (seeds[first], k)):
                made.append(super().predict(d, x[part], k, cond[part], seeds[part]))
        return Prediction(torch.cat([one.out for one in made]), torch.cat([one.x0 for one in made]))


def methods(guided: bool, scale: float) -> dict[str, list[Plain]]:
    """The settings of each method that one is chosen from."""
    found: dict[str, list[Plain]] = {"none": [Plain()], "cads": [Cads(0.1), Cads(0.25)]}
    found["repel"] = [Repelled(), Repelled(0.6)]
    if guided:
        found["interval"] = [Interval(0.0, 0.8), Interval(0.2, 0.8), Interval(0.2, 0.8, 1.5 * scale)]
    else:
        found["cads"] += [Cads(0.25, 0.8, 1.0), Cads(0.5, 0.6, 1.4)]
    return found
