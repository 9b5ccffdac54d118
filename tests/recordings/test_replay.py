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


def test_replay_equals_live(engine: Any) -> None:
    recorded = search(PROMPTS, KeepAll(20), engine(), seed=40)
    grid = engine().grid
    recording = Recording.from_results(recorded, grid, ("brightness",))
    assert not np.isnan(recording.scores).any()
    assert all(r.spent.nfe == 20 * 8 for r in recorded)  # scoring every step costs no evaluation more
    for algorithm in (BestOfN(9), SeedPruning(12, (0.5, 0.5), steps=(1, 4)), SeedPruning(None, (0.4,), steps=(3,))):
        live = search(PROMPTS, algorithm, engine(batch_size=5), "80nfe", seed=40, keep=2)
        replayed = search(PROMPTS, algorithm, ReplayEngine(recording), "80nfe", seed=40, keep=2)
        for a, b in zip(live, replayed, strict=True):
            assert [c.seed for c in a.images] == [c.seed for c in b.images]
            assert [c.reward for c in a.images] == pytest.approx([c.reward for c in b.images])
            assert a.spent.cost == b.spent.cost
            assert [m["uids"] for m in a.trace] == [m["uids"] for m in b.trace]


@pytest.mark.parametrize(("width", "shared"), each_once([1, 4], [False, True]))
def test_priced_replay_equals_live(engine: Any, width: int, shared: bool) -> None:
    names = [f"{i}" for i in range(6)]
    recorded = search(names, KeepAll(20), engine(prompts=6), seed=40)
    grid = engine().grid
    recording = Recording.from_results(recorded, grid, ("brightness",))
    forecast = fit(recording.scores[..., 0], grid.levels, estimates(1, 3, 5, 8))
    algorithm = PriceOfCompute(forecast, 20, width, price=1e-3 if shared else None)
    spent = {}
    for budget in ("9nfe", "30nfe", "75nfe"):
        live_engine = engine(batch_size=3, prompts=6)
        live = search(names, algorithm, live_engine, budget, shared=shared, seed=40)
        for capacity in (1, live_engine.capacity):
            replayed = search(
                names, algorithm, ReplayEngine(recording, capacity=capacity), budget, shared=shared, seed=40
            )
            spent[budget, capacity] = [r.spent.nfe for r in replayed]
            if shared and capacity == 1:
                continue  # other rounds, and so another division of the pot
            for a, b in zip(live, replayed, strict=True):
                assert a.best.seed == b.best.seed
                assert a.best.reward == pytest.approx(b.best.reward)
                assert a.spent.cost == b.spent.cost
                assert [(m["uids"], m["stop"]) for m in a.trace] == [(m["uids"], m["stop"]) for m in b.trace]
    assert shared or spent["30nfe", 1] == spent["30nfe", 6]


def test_what_was_not_recorded_is_refused() -> None:
    grid = Grid((1.0, 0.5, 0.0))
    recording = Recording(("a",), np.zeros((1, 3, 3, 1)), grid, ("r",), first_seed=5, scored=(False, True, True))
    assert search(["a"], BestOfN(3), ReplayEngine(recording), seed=5)[0].best.seed == 5
    with pytest.raises(ValueError, match=r"5\.\.8 of 'a':"):
        search(["a"], BestOfN(4), ReplayEngine(recording), seed=5)
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        search(["a"], SeedPruning(2, (0.5,), steps=(0,)), ReplayEngine(recording), seed=5)
    with pytest.raises(ValueError, match="are not the"):
        search(["b"], BestOfN(1), ReplayEngine(recording), seed=5)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 2, 1\), expected \(1, seeds, 3, 1\)"):
        Recording(("a",), np.zeros((1, 3, 2, 1)), grid, ("r",))


def test_unpaid_columns_are_hidden() -> None:
    recording = Recording(("a",), np.arange(12.0).reshape(1, 4, 3, 1), Grid((1.0, 0.5, 0.0)), ("r",))
    engine = ReplayEngine(recording)
    with pytest.raises(ValueError, match="been paid"):
        engine.scores(0, np.array([1]), np.array([2]), ESTIMATE)
    none = ParticleTable(2, 1, mean).view
    plan = resolve(fresh(1, 1), none, engine.grid, 1, seed=1)
    engine.submit(0, plan)
    assert engine.scores(0, np.array([1]), np.array([1]), ESTIMATE) == 4
    with pytest.raises(ValueError, match="been paid"):
        engine.scores(0, np.array([1]), np.array([2]), ESTIMATE)
    assert search(["a"], BestOfN(2), engine)[0].best.seed == 1
    with pytest.raises(ValueError, match="renoised or branched"):
        engine.submit(0, dataclasses.replace(plan, rows=plan.rows._replace(kind=np.array([Kind.RENOISE]))))
