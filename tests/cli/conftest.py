"""The command line runs on the embedded model, whose images and FLOPs matter in none of these
tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _quick(shallow_model):
    pass
