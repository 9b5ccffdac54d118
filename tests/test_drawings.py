"""The pictures of searches in docs/algorithms.md: what is drawn is what a search computed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from ttsnap.algorithms.catalogue import ALGORITHMS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("draw_searches")


def test_each_group_of_the_catalogue_is_drawn(drawing: Any) -> None:
    groups = {entry.group for entry in ALGORITHMS.values()} - {"study"}
    assert set(drawing.GROUPS) == groups == {path.stem for path in (ROOT / "docs" / "searches").glob("*.png")}
    assert all(ALGORITHMS[p.algorithm["name"]].group == g for g, panels in drawing.GROUPS.items() for p in panels)
