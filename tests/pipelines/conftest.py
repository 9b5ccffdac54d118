"""Searches with tiny pipelines, whose FLOPs are counted where a test asks for `real_flops`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from diffusers.utils import dynamic_modules_utils


@pytest.fixture(autouse=True)
def _flops(any_flops: None) -> None:
    pass


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers copies custom code to a cache that it puts on sys.path."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
