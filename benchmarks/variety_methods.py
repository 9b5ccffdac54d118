"""Methods that make seeds of a prompt differ more (benchmarks/variety.py compares them)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttsnap.options.variety import Repel
from ttsnap.sampling.kernels import Prediction

Predict = Callable[[Tensor, int, Tensor], Prediction]
"""An evaluation of rows x (N, ...) at a step, of prompts (N,): the first seeds, in order."""


@dataclass(frozen=True)
class Plain:
    """The model as it is."""

    def of(self, d: Any) -> Predict:
        """Evaluations by this denoiser."""

        def predict(x: Tensor, k: int, cond: Tensor) -> Prediction:
            made: Prediction = d.predict(x, torch.full((len(x),), k), cond)
            return made

        return predict


@dataclass(frozen=True)
class Repelled(Plain):
    """Groups of seeds that push each other apart down to noise level `level`, as `variety="repel"`
    does."""

    level: float = Repel().level
    factor: float = Repel().factor

    def of(self, d: Any) -> Predict:
        plain = super().of(d)
        how = Repel(level=self.level, factor=self.factor)
        calls = sum(level >= self.level - 1e-6 for level in d.grid.levels[:-1])
        together, _ = d.coupled(how, calls)

        def predict(x: Tensor, k: int, cond: Tensor) -> Prediction:
            if k >= calls:
                return plain(x, k, cond)
            made = []
            for first in range(0, len(x), how.size):
                part = slice(first, first + how.size)
                at = torch.full((len(x[part]),), k)
                made.append(together(x[part], at, cond[part], (first, k)))
            outs = torch.cat([one.out for one in made])
            return Prediction(outs, torch.cat([one.x0 for one in made]))

        return predict


METHODS: dict[str, list[Plain]] = {"none": [Plain()], "repel": [Repelled(), Repelled(0.6)]}
"""The settings of each method that one is chosen from."""
