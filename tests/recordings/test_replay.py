"""A recording replayed gives the decisions, winners and ledgers of the live search."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.cover import each_once
from ttsnap import BestOfN, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.grid import Grid
from ttsnap.core.looks import ESTIMATE, estimates
from ttsnap.core.moves import Kind, fresh
from ttsnap.core.plans import resolve
from ttsnap.core.table import ParticleTable
from ttsnap.core.utility import mean
from ttsnap.recordings.replay import Recording, ReplayEngine

PROMPTS = ["a", "b", "c"]
GRID = Grid((1.0, 0.5, 0.0))


def recorded(engine: Any, prompts: list[str]) -> Recording:
    found = search(prompts, KeepAll(20), made := engine(prompts=len(prompts)), seed=40)
    assert all(r.spent.nfe == 20 * 8 for r in found)  # scoring every step costs no evaluation more
    recording = Recording.from_results(found, made.grid, ("brightness",))
    assert not np.isnan(recording.scores).any()
    return recording


def assert_same(live: Any, replayed: Any) -> None:
    for a, b in zip(live, replayed, strict=True):
        assert [c.seed for c in a.images] == [c.seed for c in b.images]
        assert [c.reward for c in a.images] == pytest.approx([c.reward for c in b.images])
        assert a.spent.cost == b.spent.cost
        assert [(m["uids"], m["stop"]) for m in a.trace] == [(m["uids"], m["stop"]) for m in b.trace]


def test_replay_equals_live(engine: Any) -> None:
    recording = recorded(engine, PROMPTS)
    for algorithm in (BestOfN(9), SeedPruning(12, (0.5, 0.5), steps=(1, 4)), SeedPruning(None, (0.4,), steps=(3,))):
        engines = engine(batch_size=5), ReplayEngine(recording)
        assert_same(*(search(PROMPTS, algorithm, one, "80nfe", seed=40, keep=2) for one in engines))


@pytest.mark.parametrize(("width", "shared"), each_once([1, 4], [False, True]))
def test_priced_replay_equals_live(engine: Any, width: int, shared: bool) -> None:
    names = [f"{i}" for i in range(4)]
    recording = recorded(engine, names)
    forecast = fit(recording.scores[..., 0], recording.grid.levels, estimates(1, 3, 5, 8))
    algorithm = PriceOfCompute(forecast, 20, width, price=1e-3 if shared else None)
    for budget in ("9nfe", "30nfe"):
        live_engine = engine(batch_size=3, prompts=4)
        live, alone, together = (
            search(names, algorithm, one, budget, shared=shared, seed=40)
            for one in (live_engine, ReplayEngine(recording), ReplayEngine(recording, capacity=live_engine.capacity))
        )
        assert_same(live, together)
        if not shared:  # other rounds are another division of the pot
            assert_same(live, alone)


def test_what_was_not_recorded_is_refused() -> None:
    recording = Recording(("a",), np.zeros((1, 3, 3, 1)), GRID, ("r",), first_seed=5, scored=(False, True, True))
    assert search(["a"], BestOfN(3), ReplayEngine(recording), seed=5)[0].best.seed == 5
    for prompt, algorithm, said in (
        ("a", BestOfN(4), r"5\.\.8 of 'a':"),
        ("a", SeedPruning(2, (0.5,), steps=(0,)), r"\[1, 2\]"),
        ("b", BestOfN(1), "are not the"),
    ):
        with pytest.raises(ValueError, match=said):
            search([prompt], algorithm, ReplayEngine(recording), seed=5)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 2, 1\), expected \(1, seeds, 3, 1\)"):
        Recording(("a",), np.zeros((1, 3, 2, 1)), GRID, ("r",))


def test_unpaid_columns_are_hidden() -> None:
    engine = ReplayEngine(Recording(("a",), np.arange(12.0).reshape(1, 4, 3, 1), GRID, ("r",)))
    with pytest.raises(ValueError, match="been paid"):
        engine.scores(0, np.array([1]), np.array([2]), ESTIMATE)
    plan = resolve(fresh(1, 1), ParticleTable(2, 1, mean).view, engine.grid, 1, seed=1)
    engine.submit(0, plan)
    assert engine.scores(0, np.array([1]), np.array([1]), ESTIMATE) == 4
    with pytest.raises(ValueError, match="been paid"):
        engine.scores(0, np.array([1]), np.array([2]), ESTIMATE)
    assert search(["a"], BestOfN(2), engine)[0].best.seed == 1
    with pytest.raises(ValueError, match="renoised or branched"):
        engine.submit(0, dataclasses.replace(plan, rows=plan.rows._replace(kind=np.array([Kind.RENOISE]))))
