"""What tests of pipelines share."""

from __future__ import annotations

import sys

import pytest
from diffusers.utils import dynamic_modules_utils


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    """diffusers copies custom code to a cache that it puts on sys.path."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
