"""Tuning the pruning half of a search that hands its survivors on."""

from __future__ import annotations

import pytest

from ttsnap.algorithms.nested import Nested, ttsnap_rbf
from ttsnap.algorithms.rbf import RBF
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.core.price import Price, Rates
from ttsnap.loop.budget import Budget, task_of
from ttsnap.recordings.replay import ReplayEngine
from ttsnap.simulation.handover import Handover
from ttsnap.simulation.sizing import sized_for
from ttsnap.simulation.tune import tune

from .test_tune import BUDGETS, planted

END = 14
"""Evaluations from a scored estimate at the hand-over, step 6 of 20, to the image; the first is paid."""


def test_the_planted_step_is_found_before_the_hand_over() -> None:
    recording = planted(3)
    handover = Handover.of(ttsnap_rbf(), recording)
    assert (handover.step, handover.share, handover.default.steps, handover.default.keep) == (6, 0.5, (2,), (0.4,))
    found = tune(recording, BUDGETS, trials=40, checks=2, seed=1, handover=handover)
    assert found.schedule.steps is not None
    assert found.schedule.steps[0] == 3
    assert max(found.schedule.steps) < handover.step
    worth = found.held_out
    assert worth is not None
    assert worth.better  # by default the first check is at step 2, where nothing is known yet
    assert [str(b) for b in worth.base.budgets] == [f"{n // 2 + END - 1}nfe" for n in (40, 80, 160)]


@pytest.mark.parametrize("budget", ["40nfe", "100nfe", "333nfe", "700flop", "2000flop"])
def test_so_many_seeds_are_pruned_as_live(budget: str) -> None:
    recording = planted(3, seeds=400, price=Price(Rates(2.0, 1.0, 3.0)))
    nested = ttsnap_rbf()
    handover = Handover.of(nested, recording)
    task = task_of(Budget.parse(budget), ReplayEngine(recording))
    first = nested.init(task).algorithm
    _, simulated = sized_for(recording, handover.searched(handover.default), handover.budget(budget, recording))
    assert simulated.n == first.n
    assert first.n is not None
    assert first.n > 1


def test_what_cannot_be_fitted_is_named() -> None:
    recording = planted(3)
    with pytest.raises(ValueError, match="top-noises has no schedule to fit"):
        Handover.of(Nested(TopNoises(8, keep=2), RBF()), recording)
    scored = tuple(k != 6 for k in range(21))
    with pytest.raises(ValueError, match="handed over at step 6, whose estimates were not recorded"):
        Handover.of(ttsnap_rbf(), planted(3, scored=scored))
    late = planted(3, scored=tuple(k in (6, 8, 20) for k in range(21)))
    with pytest.raises(ValueError, match="no estimates before step 6"):
        tune(late, BUDGETS, handover=Handover.of(ttsnap_rbf(), late))
    with pytest.raises(ValueError, match="seed-pruning has no check"):
        Nested(SeedPruning(keep=(), levels=()), RBF(), share=0.5).init(
            task_of(Budget(nfe=100), ReplayEngine(recording))
        )
