"""Lockstep simulation against the loop, for schedules and for the policy that prices compute."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ttsnap import BestOfN, Budget, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core import Kind, Move, Price, Rates, Rows, Task, fresh, utility
from ttsnap.core.looks import estimates
from ttsnap.core.selection import Selection
from ttsnap.recordings.replay import ReplayEngine
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.sizing import sized_for

from .test_simulate import GRID, recording


@pytest.fixture(scope="module")
def priced():
    return PriceOfCompute(
        fit(recording(20, 40, 9).scores[..., 0], GRID.levels, estimates(2, 4, 6, 10)), n=16
    )


def in_order(r, n=16):
    """Each prompt's first n seeds, as the loop takes them."""
    draws = np.tile(np.arange(r.seeds, dtype=np.float32), (len(r.prompts), 1))
    return Orders(draws).play(r, n)


def agrees(out, loop):
    """Winners, and what each search took, are those of the loop."""
    assert out.winner.tolist() == [x.best.seed for x in loop]
    np.testing.assert_allclose(out.reward, [x.best.reward for x in loop])
    assert out.paid.nfe.tolist() == [x.spent.cost.nfe for x in loop]
    assert out.paid.drafts.tolist() == [x.spent.cost.draft_calls for x in loop]
    assert out.paid.scored.tolist() == [
        x.spent.cost.reward_calls / len(loop[0].best.scores) for x in loop
    ]


@pytest.mark.parametrize(
    "algorithm",
    [
        BestOfN(7),
        SeedPruning(16, (0.5, 0.3), steps=(2, 5)),
        SeedPruning(9, (0.4,), levels=(0.35,)),
        KeepAll(5),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rewards", "combine"), [(1, utility.mean), (2, utility.mean), (2, utility.rank_sum)]
)
def test_lockstep_is_the_loop(algorithm, rewards, combine):
    r = recording(25, 16, rewards=rewards)
    loop = search(r.prompts, algorithm, ReplayEngine(r), selection=Selection(utility=combine))
    agrees(lockstep(algorithm, in_order(r), 25, Task(GRID), rewards=rewards, utility=combine), loop)


FREE = Price()
DEAR = Price(Rates(nfe=10.0, reward_calls=3.0))
UNDECODED = Price(Rates(nfe=10, decodes=12, reward_calls=2), estimates="nothing")
"""Estimates of a reward that reads latents take no decode."""


@pytest.mark.parametrize(
    ("budget", "price", "check", "end"),
    [
        ("12nfe", FREE, 0, 0),
        ("37nfe", FREE, 0, 0),
        ("300nfe", FREE, 0, 0),
        ("600flop", DEAR, 0.3, 0.3),
        ("600flop", UNDECODED, 0.2, 1.4),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_priced_lockstep_is_the_loop_at_any_price(priced, budget, price, check, end, shared):
    r = recording(4, 16, price=price)
    mine = dataclasses.replace(priced, price=0.02 if shared else None)
    for algorithm in [mine] if shared else [mine, SeedPruning(None, (0.4,), levels=(0.35,))]:
        task, sized = sized_for(r, algorithm, Budget.parse(budget), shared=shared)
        loop = search(r.prompts, sized, ReplayEngine(r), budget, shared=shared)
        assert (task.checking, task.score_cost) == pytest.approx((check, end))
        out = lockstep(sized, in_order(r), 4, task, pot=4 if shared else None)
        agrees(out, loop)
        assert out.paid.finals.tolist() == [x.spent.finished for x in loop]
        spent = out.paid.spent(task)
        np.testing.assert_allclose(
            spent, [x.spent.flops / 10 if "flop" in budget else x.spent.nfe for x in loop]
        )
        assert spent.sum() <= 4 * task.allowance
        assert shared or spent.max() <= task.allowance


def test_pots_are_for_moves_of_one_row_and_searches_have_a_size():
    with pytest.raises(ValueError, match="with n set"):
        lockstep(BestOfN(), lambda *a: np.zeros(1), 1, Task(GRID))
    with pytest.raises(ValueError, match="time, got 3"):
        lockstep(
            SeedPruning(6, (0.5,), steps=(2,)),
            in_order(recording()),
            12,
            Task(GRID, 1, 90.0),
            pot=12,
        )


def test_moves_that_cost_nothing_come_to_an_end():
    class Idle(BestOfN):
        def step(self, state, particles, rng):
            if not len(particles):
                return fresh(self.n or 1, 0, score=False), state
            seeds, at = particles.seed * 0, particles.step
            return Move(
                Rows(seeds + Kind.CONTINUE, seeds, at, at, at < 0, np.ones(at.shape))
            ), state

    with pytest.raises(RuntimeError, match="over 1000 moves"):
        lockstep(Idle(2), lambda *a: np.zeros(1), 3, Task(GRID))
