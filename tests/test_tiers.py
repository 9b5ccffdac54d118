"""The fast tier needs no browser, no Ray and no server; what conftest.py puts into the other tier is there."""

from __future__ import annotations

import re

import pytest

from tests.conftest import SYSTEM, TESTS, is_system

HEAVY = {"gradio", "gradio_client", "nbclient", "playwright", "ray", "sphinx", "uvicorn"}


@pytest.mark.parametrize("name", SYSTEM)
def test_what_is_named_is_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert (TESTS / file).exists()
    assert not test or f"def {test}(" in (TESTS / file).read_text(encoding="utf-8")


def test_the_fast_tier_imports_no_browser_server_or_ray() -> None:
    for path in TESTS.rglob("test_*.py"):
        if not is_system(path):
            modules = re.findall(r"^ *(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.M)
            assert not set(modules) & HEAVY, path
