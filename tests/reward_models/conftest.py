from __future__ import annotations

import functools

import pytest


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Rewards of published.py by name, each loaded once: no test may change them."""
    from .published import load

    return functools.cache(lambda name: load(name, tmp_path_factory.mktemp(name)))
