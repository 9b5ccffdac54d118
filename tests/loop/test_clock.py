"""Budgets in seconds, by a clock that the model itself moves on: sized by what was measured, and again as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.counted import Brightness, Counted
from ttsnap import make_algorithm, search
from ttsnap.core.cost import Rates
from ttsnap.core.results import Result
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling.kernels import KERNELS

RATES = Rates(0.025, 0.02, 0.005, draft_calls=0.012, call=0.01)
"""Seconds, about those of the embedded model on two quiet cores: an image takes half a second."""
Speed = Callable[[float], float]
"""The time since the begin -> how many times as long everything takes."""


class Slow(Counted):
    """Takes its time, by a clock of its own."""

    speed: Speed = staticmethod(lambda now: 1.0)
    now = 0.0
    passes_per_nfe = 2

    def takes(self, seconds: float) -> None:
        self.now += seconds * self.speed(self.now)

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Any:
        self.takes(RATES.call + RATES.nfe * len(x))
        return super().predict(x, step, cond)

    def decode(self, x0: Tensor) -> Any:
        self.takes((RATES.decodes + RATES.reward_calls) * len(x0))
        return super().decode(x0)

    def guess(self, x: Tensor, step: Tensor, cond: Tensor, calls: int) -> Tensor:
        self.takes(RATES.call + RATES.draft_calls * len(x))
        return x


def made(speed: Speed = lambda now: 1.0, *, drafts: bool = False, kernel: str = "ode", batch: int = 16) -> LiveEngine:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 3, generator=generator)
    denoiser = Slow(means, torch.full((4,), 0.3), torch.tensor([0.1, 0.2, 0.3, 0.4]), steps=20)
    denoiser.speed = speed
    if drafts:
        denoiser.drafts = SimpleNamespace(calls=1, passes=1, guess=denoiser.guess, level=lambda step, calls: 0.5)
    live = LiveEngine(denoiser, [Brightness()], EngineOptions(batch), kernel=KERNELS[kernel](denoiser))
    live._price = replace(live.price, seconds=RATES)
    return live


def timed(name: str, budget: float, live: LiveEngine, prompts: Sequence[str] = ("a",), **options: Any) -> tuple[float, list[Result]]:
    """The share of the time that was taken, and the results."""
    slow: Any = live.denoiser
    results = search(prompts, make_algorithm(name, **options), live, f"{budget}s", clock=lambda: slow.now)
    return slow.now / (budget * len(prompts)), results
