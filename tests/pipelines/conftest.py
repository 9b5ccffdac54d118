"""Searches with tiny pipelines, without the count of their FLOPs, which takes several times as long as they do."""

from __future__ import annotations

import pytest


@pytest.fixture
def real_flops() -> None:
    """For tests of what FLOPs are, which count them; everywhere else in this folder any number does."""


@pytest.fixture(autouse=True)
def any_flops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_flops" not in request.fixturenames:
        monkeypatch.setattr("ttsnap.pipelines.flops.counted", lambda denoiser, decoder: (1e6, 1e5))
        monkeypatch.setattr("ttsnap.pipelines.flops.counted_draft", lambda denoiser: 1e6)
