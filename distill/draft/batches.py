"""Which rows a step of the training takes, and their loss: pure functions of the step, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from ttsnap.distill.draft.config import TrainingConfig

from ttsnap.core.arrays import IntArray
from ttsnap.sampling.drafts import carried
from ttsnap.sampling.interpolants import Interpolant, level, rows

Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (N, ...), told times (N,), rows of prompts (N,)) -> x0 (N, ...)."""


@dataclass(frozen=True)
class Rows:
    """B rows of a batch: trajectories (B,), grid steps that they start from (B,); the first `second` of them are second
    calls, which start from the network's own first guess."""

    trajectories: IntArray
    steps: IntArray
    second: int

    def part(self, index: int, parts: int) -> Rows:
        """Every so many rows, from row `index` on."""
        chosen = slice(index, None, parts)
        return Rows(self.trajectories[chosen], self.steps[chosen], len(range(index, self.second, parts)))


def draw(step: int, count: int, states: int, config: TrainingConfig) -> Rows:
    """The rows of optimiser step `step`, of `count` trajectories with `states` states.

    Every trajectory comes once before any comes again. Rows of each kind are as many in every batch.
    """
    first = step * config.batch
    at = np.arange(first, first + config.batch)
    chosen = np.empty(config.batch, np.int64)
    for epoch in np.unique(at // count):
        order = np.random.default_rng((config.seed, 0, int(epoch))).permutation(count)
        chosen[at // count == epoch] = order[at[at // count == epoch] % count]
    second, noise = round(config.second * config.batch), round(config.from_noise * config.batch)
    rng = np.random.default_rng((config.seed, 1, step))
    steps = rng.integers(1, states, config.batch) if states > 1 else np.zeros(config.batch, np.int64)
    steps[: second + noise] = 0
    return Rows(chosen, steps, second)


def second_calls(path: Interpolant, estimate: Estimate, x: Tensor, cond: Tensor, t: float, first_time: float) -> Tensor:
    """Where second calls are made, (N, ...): half of the way from x (N, ...) at time t to the network's first guess,
    along the same noise."""
    times = torch.full((len(x),), t, dtype=torch.float64)
    with torch.no_grad():
        return carried(path, x, estimate(x, times * first_time, cond), times, times / 2)


def loss(path: Interpolant, guess: Tensor, end: Tensor, told: Tensor, floor: float) -> Tensor:
    """Mean over rows of the mean squared error of guesses (N, ...) of ends (N, ...), in units of the noise level told.

    An error of x0 is about the level times an error of the network's output; below `floor` the level no longer counts,
    so that second calls do not outweigh first ones.
    """
    weight = level(path, told).clamp(min=floor)
    return ((guess - end) / rows(weight, guess)).pow(2).flatten(1).mean(1).mean()
