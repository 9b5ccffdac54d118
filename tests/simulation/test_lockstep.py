"""Lockstep simulation against the loop, for schedules and for the policy that prices compute."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core import utility
from ttsnap.core.cost import Price, Rates
from ttsnap.core.grid import Grid, Task
from ttsnap.core.looks import Estimator, estimates
from ttsnap.core.moves import Kind, Move, Rows, fresh
from ttsnap.loop.budget import Budget, task_of
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.sizing import sized_for

GRID = Grid(tuple(np.linspace(1, 0, 11)))
SETTLING = 1 - np.linspace(0.9, 0, 11)  # correlation with the final score


def trajectories(prompts: int, seeds: int, seed: int = 0) -> np.ndarray:
    """(P, S, 11): scores that settle on the final one."""
    rng = np.random.default_rng(seed)
    level, spread = rng.normal(size=(prompts, 1, 1)), np.exp(0.3 * rng.normal(size=(prompts, 1, 1)))
    final = rng.normal(size=(prompts, seeds, 1))
    noise = rng.normal(size=(prompts, seeds, 11))
    return level + spread * (SETTLING * final + np.sqrt(1 - SETTLING**2) * noise)


def recording(prompts: int = 25, seeds: int = 16, rewards: int = 1, price: Price | None = None) -> Recording:
    scores = np.stack([trajectories(prompts, seeds, i) for i in range(rewards)], -1)
    names = tuple(f"{i:03d}" for i in range(prompts))
    return Recording(names, scores, GRID, tuple("ab"[:rewards]), price=price or Price())


@pytest.fixture(scope="module")
def priced() -> PriceOfCompute:
    return PriceOfCompute(fit(trajectories(20, 40, 9), GRID.levels, estimates(2, 4, 6, 10)), n=30)


def play(r: Recording, rows: Any, candidates: Any, steps: Any, look: Estimator) -> Any:
    return r.scores[rows[:, None], candidates, steps]


@pytest.mark.parametrize(
    "algorithm",
    [BestOfN(7), SeedPruning(16, (0.5, 0.3), steps=(2, 5)), SeedPruning(9, (0.4,), levels=(0.35,)), KeepAll(5)],
    ids=str,
)
@pytest.mark.parametrize("rewards", [1, 2])
@pytest.mark.parametrize("combine", [utility.mean, utility.rank_sum])
def test_lockstep_is_the_loop(algorithm: Any, rewards: int, combine: Any) -> None:
    r = recording(rewards=rewards)
    loop = search(r.prompts, algorithm, ReplayEngine(r), utility=combine)
    out = lockstep(algorithm, lambda *a: play(r, *a), 25, Task(GRID), rewards=rewards, utility=combine)
    assert out.winner.tolist() == [x.best.seed for x in loop]
    np.testing.assert_allclose(out.reward, [x.best.reward for x in loop])
    assert out.paid.nfe.tolist() == [x.spent.nfe for x in loop]
    assert out.paid.scored.tolist() == [x.spent.cost.decodes for x in loop]


@pytest.mark.parametrize("budget", ["12nfe", "37nfe", "90nfe", "900nfe"])
@pytest.mark.parametrize("shared", [False, True])
def test_priced_lockstep_is_the_loop(priced: PriceOfCompute, budget: str, shared: bool) -> None:
    r = recording(5, 30)
    algorithm = dataclasses.replace(priced, price=0.02 if shared else None)
    engine = ReplayEngine(r)
    loop = search(r.prompts, algorithm, engine, budget, shared=shared)
    task = task_of(Budget.parse(budget), engine, shared=shared)
    out = lockstep(algorithm, lambda *a: play(r, *a), 5, task, pot=5 if shared else None)
    assert out.winner.tolist() == [x.best.seed for x in loop]
    assert out.paid.nfe.tolist() == [x.spent.nfe for x in loop]
    assert out.paid.scored.tolist() == [x.spent.cost.decodes for x in loop]
    assert out.paid.nfe.sum() <= 5 * task.allowance


@pytest.mark.parametrize("shared", [False, True])
def test_estimates_without_a_decode_have_their_price(priced: PriceOfCompute, shared: bool) -> None:
    """Replay of a reward that reads latents: the loop's ledger, and lockstep's, in FLOPs."""
    price = Price(Rates(nfe=10, decodes=12, reward_calls=2), estimates="nothing")
    r = recording(5, 30, price=price)
    for algorithm in (
        SeedPruning(None, (0.4,), levels=(0.35,)),
        dataclasses.replace(priced, price=0.02 * shared or None),
    ):
        if shared and isinstance(algorithm, SeedPruning):
            continue
        budget = Budget(flops=600)
        engine = ReplayEngine(r)
        loop = search(r.prompts, algorithm, engine, budget, shared=shared)
        task, sized = sized_for(r, algorithm, budget, shared=shared)
        assert task.checking == pytest.approx(0.2)
        assert task.score_cost == pytest.approx(1.4)
        out = lockstep(sized, lambda *a: play(r, *a), 5, task, pot=5 if shared else None)
        assert out.winner.tolist() == [x.best.seed for x in loop]
        np.testing.assert_allclose(10 * out.paid.spent(task), [x.spent.flops for x in loop])
        assert out.paid.finals.tolist() == [x.spent.cost.decodes for x in loop]


def test_scores_have_their_price(priced: PriceOfCompute) -> None:
    r = recording(5, 30, price=Price(Rates(nfe=10.0, reward_calls=3.0)))
    engine = ReplayEngine(r)
    for shared in (False, True):
        algorithm = dataclasses.replace(priced, price=0.02 if shared else None)
        loop = search(r.prompts, algorithm, engine, "600flop", shared=shared)
        spent = [x.spent.flops for x in loop]
        assert sum(spent) <= 600 * 5
        assert shared or max(spent) <= 600
        task = task_of(Budget(flops=600), engine, shared=shared)
        out = lockstep(algorithm, lambda *a: play(r, *a), 5, task, pot=5 if shared else None)
        assert out.winner.tolist() == [x.best.seed for x in loop]
        np.testing.assert_allclose(10 * out.paid.nfe + 3 * out.paid.scored, spent)


def test_pots_are_for_moves_of_one_row() -> None:
    r = recording()
    with pytest.raises(ValueError, match="time, got 3"):
        lockstep(SeedPruning(6, (0.5,), steps=(2,)), lambda *a: play(r, *a), 25, Task(GRID, 1, 90.0), pot=25)


def test_moves_that_cost_nothing_come_to_an_end() -> None:
    class Idle(BestOfN):
        def step(self, state: Any, particles: Any, rng: Any) -> Any:
            if not len(particles):
                return fresh(self.n or 1, 0, score=False), state
            seeds, at = particles.seed * 0, particles.step
            return Move(Rows(seeds + Kind.CONTINUE, seeds, at, at, at < 0, np.ones(at.shape))), state

    with pytest.raises(RuntimeError, match="over 1000 moves"):
        lockstep(Idle(2), lambda *a: np.zeros(1), 3, Task(GRID))


def test_lockstep_needs_a_size() -> None:
    with pytest.raises(ValueError, match="with n set"):
        lockstep(BestOfN(), lambda *a: np.zeros(1), 1, Task(GRID))
