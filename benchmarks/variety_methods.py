"""Methods that make seeds of a prompt differ more, as wrappers of a denoiser (benchmarks/variety.py
compares them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ttsnap.options.variety import Repel
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.repel import coupled


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
class Repelled(Plain):
    """Groups of seeds that push each other apart down to noise level `level`, as `variety="repel"`
    does."""

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
    found: dict[str, list[Plain]] = {"none": [Plain()], "repel": [Repelled(), Repelled(0.6)]}
    if guided:
        found["interval"] = [
            Interval(0.0, 0.8),
            Interval(0.2, 0.8),
            Interval(0.2, 0.8, 1.5 * scale),
        ]
    return found
