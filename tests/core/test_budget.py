from __future__ import annotations

import numpy as np
import pytest

from ttsnap import Budget, Cost, Grid
from ttsnap.core import Kind, Outcome, Price, Rates, Spent, Task, advance, fresh, renoise
from ttsnap.core.plans import finish_cost, resolve
from ttsnap.core.selection import BEST
from ttsnap.core.start import AS_NOISE
from ttsnap.core.table import ParticleTable
from ttsnap.loop.budget import task_of
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.ledger import Ledger

GRID = Grid(tuple(np.linspace(1, 0, 11)))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("400nfe", Budget(nfe=400)),
        ("1_000 NFE", Budget(nfe=1000)),
        ("2pflop", Budget(flops=2e15)),
        ("1.5TFLOPs", Budget(flops=1.5e12)),
        ("30s", Budget(seconds=30)),
        ("5min", Budget(seconds=300)),
        ("400nfe,30s", Budget(nfe=400, seconds=30)),
        ("12decodes, 20rewards", Budget(decodes=12, reward_calls=20)),
        ("2.5 images,30s", Budget(images=2.5, seconds=30)),
        ("high", Budget(images=80)),
        (None, Budget()),
    ],
)
def test_parse(text, budget):
    assert Budget.parse(text) == budget
    if budget != Budget():
        assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("100nef", "did you mean 100nfe"),
        ("5mn", "did you mean 5min"),
        ("3 pflpo", "did you mean 3pflop"),
        ("1decods", "did you mean 1decode"),
        ("5", "write 5nfe .* or 5images"),
        (5, "write 5nfe"),
        (" 1_000 ", "write 1000nfe"),
        ("400,30s", "write 400nfe"),
        ("1e3", "write 1e3nfe"),
        *[
            (text, "budget")
            for text in ("", "nfe", "-5nfe", "0nfe", "4.5nfe", "10 parsecs", "3nfe,4nfe", "nan s")
        ],
        *[
            (text, "budget")
            for text in (
                "1e308nfe",
                "1e308images",
                "1e308flop",
                "1e300min",
                "1e999s",
                "1e16decodes",
            )
        ],
        ("9" * 400, "budget"),
    ],
)
def test_bad_budgets_are_shown_with_what_was_meant(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        Budget.parse(text)
    assert len(str(caught.value)) < 600


def test_efforts_are_counted_on_a_grid():
    assert Budget.of_effort("medium").on(GRID, AS_NOISE) == Budget(nfe=200)
    assert Budget.of_effort(0.25).on(GRID, AS_NOISE) == Budget(nfe=200)
    assert Budget.of_effort(0.001).on(GRID, AS_NOISE) == Budget(nfe=10)
    assert Budget.parse("1e9images").on(Grid((1.0, 0.5, 0.0)), AS_NOISE).nfe == 2 * 10**9
    assert Budget(images=3, nfe=25, flops=1.0).on(GRID, AS_NOISE) == Budget(nfe=25, flops=1.0)
    for bad in ("huge", 0, 1.5, -1, "nan"):
        with pytest.raises(ValueError, match="low, medium, high"):
            Budget.of_effort(bad)
    with pytest.raises(ValueError, match="counted on a"):
        Ledger(Budget(images=3), Price())


def test_the_task_counts_the_tightest_cap_in_evaluations():
    engine = DryEngine(GRID, ("a", "b"))
    engine.price = Price(Rates(nfe=10.0, decodes=2.0, reward_calls=4.0), Rates(nfe=0.5))
    assert task_of(Budget(nfe=100), engine) == Task(GRID, 1, 100.0, 0.0)
    assert task_of(Budget(nfe=100, flops=1000), engine, keep=3) == Task(GRID, 3, 100.0, 1.0)
    assert task_of(Budget(seconds=10, nfe=100), engine, shared=True) == Task(
        GRID, 1, 20.0, 0.0, True
    )
    assert task_of(Budget(decodes=10), engine).allowance == np.inf


def table(*moves):
    t = ParticleTable(GRID.steps, 1, BEST)
    for move in moves:
        plan = resolve(move, t.view, GRID, 1)
        t.place(plan)
        for scored in (True, False):
            r = plan.rows.take(plan.rows.score == scored)
            uids = plan.uid[plan.rows.score == scored]
            t.record(
                Outcome(
                    0,
                    uids,
                    r.stop,
                    r.score & (r.stop < GRID.steps),
                    np.zeros((1, 1)) if scored else None,
                )
            )
    return t


def test_price_of_moves():
    empty, scored = table().view, table(fresh(3, 4)).view
    unscored = table(fresh(3, 4, score=False)).view
    for move, particles, rewards, cost in (
        (fresh(3, 10), empty, 2, Cost(30, 3, 6)),
        (fresh(3, 4), empty, 2, Cost(15, 3, 6)),
        (fresh(3, 4, score=False), empty, 2, Cost(12, 0, 0)),
        (advance(scored, [0, 2], 10), scored, 1, Cost(10, 2, 2)),
        (advance(unscored, [0, 2], 10), unscored, 1, Cost(12, 2, 2)),
        (renoise([0], 6, 10), table(fresh(1, 10)).view, 1, Cost(4, 1, 1)),  # from where it starts
    ):
        assert resolve(move, particles, GRID, rewards).cost == cost
    assert finish_cost(4, True, GRID, 1) == Cost(5, 1, 1)
    assert finish_cost(10, False, GRID, 1) == Cost(0, 1, 1)


def test_children_share_the_first_call():
    unscored = table(fresh(1, 4, score=False)).view
    plan = resolve(advance(unscored, [0, 0, 0], 6), unscored, GRID, 1)
    assert plan.rows.kind.tolist() == [Kind.CONTINUE, Kind.BRANCH, Kind.BRANCH]
    assert plan.costs["nfe"].tolist() == [1 + 2, 2, 2]  # the first pays what they share
    assert plan.take(slice(2)).cost == Cost(1 + 2 * 2, 2, 2)


def test_ledger_with_reserve_and_parent():
    pot = Ledger(Budget(nfe=50), Price())
    one, two = Ledger(Budget(), Price(), pot), Ledger(Budget(nfe=30), Price(), pot)
    one.hold(Cost(10))
    two.hold(Cost(10))
    assert pot.reserve == Cost(20)
    assert one.affords(Cost(40))
    assert not one.affords(Cost(41))
    assert not two.affords(Cost(31))
    one.charge(Cost(35))
    assert pot.spent == Cost(35)
    assert not two.affords(Cost(16))
    with pytest.raises(ValueError, match="exceeds 30nfe"):
        two.charge(Cost(16))
    one.refund(Cost(5))
    two.charge(Cost(16))
    assert pot.spent == Cost(46)


def test_flops_and_seconds():
    price = Price(Rates(nfe=10, decodes=5, reward_calls=1), Rates(nfe=0.1), passes_per_nfe=2)
    assert Budget(flops=100).shortfall(Cost(9, 1, 1), price) is None
    assert Budget(flops=95).shortfall(Cost(9, 1, 1), price) == "96 FLOPs"
    assert Budget(seconds=1).shortfall(Cost(11), price, seconds=True) == "1.1 seconds"
    assert Budget(seconds=1).shortfall(Cost(11), price) is None
    assert Spent(Cost(9, 1, 1), price, "").forward_passes == 18


def test_table_views_are_read_only_and_grow():
    t = table(fresh(40, 3))
    assert t.view.seed.tolist() == list(range(40))
    with pytest.raises(ValueError, match="read-only"):
        t.view.step[0] = 5


def test_grid():
    assert [GRID.step_at(level) for level in (1.0, 0.5, 0.45)] == [0, 5, 6]
    for bad in ((1.0,), (0.0, 1.0), (1.0, 0.5), (1.0, 1.0, 0.0)):
        with pytest.raises(ValueError, match="fall strictly"):
            Grid(bad)
