"""A recording replayed gives the decisions, winners and ledgers of the live search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.replay import Recording, ReplayEngine
from ttsnap.types import Grid

PROMPTS = ["a", "b", "c"]


def test_replay_equals_live(engine: Any) -> None:
    recorded = search(PROMPTS, KeepAll(20), engine(), seed=40)
    grid = engine().grid
    recordings = [Recording.from_result(r, grid, ("brightness",)) for r in recorded]
    assert not any(np.isnan(r.scores).any() for r in recordings)
    assert all(r.spent["nfe"] == 20 * 8 for r in recorded)  # scoring every step costs no evaluation more
    for algorithm in (BestOfN(9), SeedPruning(12, (0.5, 0.5), steps=(1, 4)), SeedPruning(None, (0.4,), steps=(3,))):
        live = search(PROMPTS, algorithm, engine(batch_size=5), "80nfe", seed=40, keep=2)
        replayed = search(PROMPTS, algorithm, ReplayEngine(recordings), "80nfe", seed=40, keep=2)
        for a, b in zip(live, replayed, strict=True):
            assert [c.seed for c in a.images] == [c.seed for c in b.images]
            assert [c.reward for c in a.images] == pytest.approx([c.reward for c in b.images])
            assert a.spent["cost"] == b.spent["cost"]
            assert [m["uids"] for m in a.trace] == [m["uids"] for m in b.trace]


def test_what_was_not_recorded_is_refused() -> None:
    grid = Grid((1.0, 0.5, 0.0))
    recording = Recording("a", np.zeros((3, 3, 1)), grid, ("r",), first_seed=5)
    assert search(["a"], BestOfN(3), ReplayEngine([recording]), seed=5)[0].best.seed == 5
    with pytest.raises(ValueError, match=r"seeds 5\.\.8 of 'a': recorded are 5\.\.7"):
        search(["a"], BestOfN(4), ReplayEngine([recording]), seed=5)
    with pytest.raises(ValueError, match=r"shape \(3, 2, 1\), expected \(seeds, 3, 1\)"):
        Recording("a", np.zeros((3, 2, 1)), grid, ("r",))
    with pytest.raises(ValueError, match="one grid"):
        ReplayEngine([])
