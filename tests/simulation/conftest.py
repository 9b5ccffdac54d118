"""What simulations of all tests here take."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def few_searches(monkeypatch):
    """Tuning judges by a tenth of its searches, which find what was planted as surely, and fewer
    finalists."""
    monkeypatch.setattr("ttsnap.simulation.tune.SEARCHES", 60)
    monkeypatch.setattr("ttsnap.simulation.tune.FINALISTS", 8)
