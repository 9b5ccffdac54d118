"""What the tests of the cluster share."""

from __future__ import annotations

from typing import Any

import pytest

from ttsnap.core.needs import Need
from ttsnap.core.protocols import Algorithm
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling.kernels import KERNELS

from ..algorithms.test_contract import STEPS, Coarse  # noqa: TID252
from ..loop.test_requests import ByText  # noqa: TID252


@pytest.fixture
def mixture(counted: Any) -> Any:
    """Makes engines of the Gaussian mixture for an algorithm."""

    def make(algorithm: Algorithm, batch: int = 3, rewards: Any = None, features: Any = None) -> LiveEngine:
        stock = counted(STEPS)
        denoiser = ByText(stock.means, stock.stds, stock.weights, steps=STEPS, by_prompt=stock._by_prompt)
        kernel = KERNELS["sde" if algorithm.needs & {Need.BRANCH, Need.RENOISE} else "pipeline"](denoiser)
        return LiveEngine(denoiser, rewards or [Coarse()], EngineOptions(batch, features=features), kernel=kernel)

    return make
