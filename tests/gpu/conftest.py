"""Tests that run on the CPU in the fast suite, and on this machine's accelerator with `-m gpu`."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the test runs; skipped where it asks for an accelerator and there is none."""
    if request.param == "cpu":
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        pytest.skip("this machine has no accelerator that PyTorch can use")
    return found
