"""What makes an engine that takes milliseconds; it travels whole, as actors cannot import the tests."""

from __future__ import annotations

from typing import Any

import torch

from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling.kernels import KERNELS
from ttsnap.sampling.mixture import MixtureDenoiser


class Brightest:
    """Mean of rounded pixels, in which the last digits decide nothing."""

    name = "brightest"

    def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
        return ((images * 2**12).round() / 2**12).double().mean((1, 2, 3))

    def check(self, prompts: Any) -> None:
        if "" in prompts:
            raise ValueError("an empty prompt cannot be scored")


class Tiny:
    """A Gaussian mixture with a kernel that draws noise."""

    def build(self) -> LiveEngine:
        means = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        denoiser = MixtureDenoiser(means, torch.full((4,), 0.3), torch.ones(4), steps=8)
        return LiveEngine(denoiser, [Brightest()], EngineOptions(3), kernel=KERNELS["sde"](denoiser))
