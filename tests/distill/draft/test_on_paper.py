"""What a draft takes, worked out without a GPU: benchmarks/draft_on_paper.py."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from ttsnap.distill.config import DraftConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("draft_on_paper")


def test_hours_follow_from_the_figures(paper):
    flops = 1e12, 2e12, {"thin": 5e11}, 5e12, 6e12
    one = paper.Paper(
        "A model", 20, 2, 8_000_000_000, 5, 30_000_000, *flops, 3 * 10**9, 10**9, 1000
    )
    assert one.trajectory == 40e12
    assert one.stored == 2_000
    config = DraftConfig(("r",), batch=48, second=0.25, updates=3600, checkpointing=True)
    assert one.step(config) == 48 * 6e12 + 12 * 2e12
    told = re.sub(" +", " ", paper.table([one], 100.0, 9000, config))
    for row in (
        "9,000 trajectories at 100 TFLOP/s | 1.0 h",
        "3,600 x 48 rows at 100 TFLOP/s, checkpointing | 3.1 h",
        "its file, bfloat16 | 60 MB",
        "the same, thin | 0.50 passes",
        "its training state | 0.6 GB",
    ):
        assert f"| {row} |" in told
