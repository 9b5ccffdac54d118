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


def test_the_steps_drawn_are_those_that_were_paid(drawing: Any) -> None:
    result, traced = drawing.searched(drawing.GROUPS["seeds"][1])
    steps = drawing.ways(traced)
    ends = {after for step, _, _, _, after in steps if step == drawing.STEPS - 1}
    # A candidate that is scored and dropped was evaluated once more than it stepped.
    dropped = result.spent.seeds - result.spent.finished
    assert len(steps) + dropped == result.spent.nfe
    assert len(ends) == result.spent.finished
    assert len(drawing.leading(steps, ends)) == drawing.STEPS * result.spent.finished
