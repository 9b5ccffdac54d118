"""Simulation against brute force and by hand, and the price of a shared pot."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import numpy as np
import pytest

from ttsnap import BestOfN, Budget, Grid, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.core import Price, Rates, Task, utility
from ttsnap.loop.budget import task_of
from ttsnap.loop.dry import DryEngine
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.calibrate import Fit, calibrate
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders, draw_orders
from ttsnap.simulation.simulate import best_of_n_curve, compare, curve, require_varied
from ttsnap.simulation.sizing import published_seeds, sized_for

GRID = Grid(tuple(np.linspace(1, 0, 11).tolist()))


def recording(prompts=12, seeds=30, seed=0, rewards=1, **details):
    """Scores that settle on the finished one over ten steps."""
    rng = np.random.default_rng(seed)
    known = np.linspace(0.2, 1, 11)[:, None]
    level = rng.normal(size=(prompts, 1, 1, 1))
    final = rng.normal(size=(prompts, seeds, 1, rewards))
    noise = rng.normal(size=(prompts, seeds, 11, rewards))
    scores = level + known * final + np.sqrt(1 - known**2) * noise
    names = tuple(f"prompt {i}" for i in range(prompts))
    return Recording(names, scores, GRID, ("a", "b")[:rewards], **details)


def test_best_of_n_is_the_mean_over_all_subsets():
    r = recording(3, 6, rewards=2, price=Price(Rates(10.0, 1.0, 2.0)))
    final = r.final.mean(-1)
    found = best_of_n_curve(r, ["19nfe", "20nfe", "35nfe", "60nfe", "1000nfe"])
    for i, n in enumerate((1, 2, 3, 6, 6)):  # no more than were recorded
        subsets = [list(s) for s in itertools.combinations(range(6), n)]
        np.testing.assert_allclose(
            found.rewards[:, i], np.mean([final[:, s].max(1) for s in subsets], 0)
        )
        won = [r.final[np.arange(3), np.array(s)[final[:, s].argmax(1)]] for s in subsets]
        np.testing.assert_allclose(found.scores[:, i], np.mean(won, 0))
        assert found.spent[i] == found.most[i] == 10 * n
    # With FLOPs, an image takes a decode and both rewards as well: 100 + 1 + 4.
    dear = best_of_n_curve(r, ["209flop", "210flop"])
    np.testing.assert_allclose(dear.spent, [10.5, 21.0])
    # Searching in random orders comes to the same, within its error.
    sampled = curve(r, BestOfN(), ["30nfe"], 4000).rewards[:, 0]
    np.testing.assert_allclose(sampled, found.rewards[:, 2], atol=0.05)


def test_curves_are_reproducible():
    r, budgets = recording(), ["40nfe", "80nfe", "160nfe"]
    algorithm = SeedPruning(None, (0.5,), steps=(4,))
    first = curve(r, algorithm, budgets, 5, seed=3)
    again = curve(r, algorithm, [Budget(nfe=40), "8images", "160nfe"], 5, seed=3)
    np.testing.assert_array_equal(first.rewards, again.rewards)
    assert not np.array_equal(first.rewards, curve(r, algorithm, budgets, 5, seed=4).rewards)
    # A budget's orders are drawn after those of the budgets before it: a longer list leaves the
    # beginning as it is.
    np.testing.assert_array_equal(
        first.rewards[:, :2], curve(r, algorithm, budgets[:2], 5, seed=3).rewards
    )
    # Orders that are drawn once for several schedules, as `tune` draws them, are those that each
    # would draw.
    drawn = curve(r, algorithm, budgets, 5, orders=draw_orders(r, budgets, 5, 3))
    np.testing.assert_array_equal(first.rewards, drawn.rewards)
    # Best-of-N is exact, whatever the order.
    exact, turned = best_of_n_curve(r, budgets), best_of_n_curve(r, budgets[::-1])
    np.testing.assert_array_equal(exact.rewards, turned.rewards[:, ::-1])
    assert (first.most <= [40, 80, 160]).all()


def test_curves_keep_to_budgets_as_searches_do():
    """More seeds than the budget pays for are not started; where not even one is checked, one is
    finished."""
    r = recording(seeds=40, price=Price(Rates(1.0, 0.0, 1.0)))
    for algorithm in (SeedPruning(39, (0.5,), steps=(4,)), BestOfN(39), KeepAll(39)):
        for budget in ("11flop", "13flop", "60flop"):
            found = curve(r, algorithm, [budget], 3)
            assert 10 <= found.spent[0] <= found.most[0] <= float(budget[:-4])
    assert sized_for(r, SeedPruning(39, (0.5,), steps=(4,)), Budget(flops=11.5))[1] == BestOfN(1)
    (alone,) = search(
        ["prompt 0"],
        SeedPruning(39, (0.5,), steps=(4,)),
        ReplayEngine(r.select(slice(0, 1))),
        "11flop",
    )
    assert (alone.spent.flops, alone.spent.cost.decodes) == (11, 1)
    assert curve(r, SeedPruning(3, (0.5,), steps=(4,)), ["1000nfe"], 2).spent[0] == 3 * 5 + 2 * 5


def test_the_published_ledger_by_hand():
    dry = DryEngine(
        Grid(tuple(np.linspace(1, 0, 21).tolist())), ("r",), price=Price(Rates(10.0, 0.0, 1.0))
    )
    task = task_of(Budget(flops=1000.0), dry)
    # 4 seeds-shares: 2 calls and a score; .4 of them 4 more and a score; .16 of them 13 more, up to
    # 19, and a score.
    one = (2 * 10 + 1) + 0.4 * (4 * 10 + 1) + 0.16 * (13 * 10 + 1)
    assert published_seeds(SeedPruning(None, (0.4, 0.4), steps=(2, 6)), task) == int(1000 / one)
    assert (
        published_seeds(
            SeedPruning(None, (0.4, 0.4), steps=(2, 6)), dataclasses.replace(task, allowance=1.0)
        )
        == 1
    )
    for algorithm in (SeedPruning(None, (0.4,), (0.6,)), BestOfN()):
        with pytest.raises(ValueError, match="pruning schedules given"):
            published_seeds(algorithm, task)
    # A number of seeds is billed likewise, and taken where it is smaller than what the bill
    # affords.
    r, ledgers = recording(), {"published": (None, 500, 2), "honest": (None,)}
    fit, most, few, honest = (
        curve(r, SeedPruning(n, (0.5,), steps=(3,)), ["100nfe"], 2, ledger=ledger).most[0]
        for ledger, numbers in ledgers.items()
        for n in numbers
    )
    assert most == fit > 100 >= honest
    assert fit > few


def test_seeds_that_all_start_at_once_are_as_many_as_fit():
    found = curve(recording(), TopNoises(n=500, keep=2), ["30nfe", "45nfe"], 2)
    assert found.most.tolist() == [30, 45]  # n + 2 (10 - 1): 12 and 27 seeds


def test_the_published_ledger_rounds_survivors_as_the_notebooks_do():
    """Python's round takes halves to even: of 10 seeds half are 5, and half of those 2. Everywhere
    else it is 3."""
    r, schedule = recording(seeds=10), SeedPruning(None, (0.5, 0.5), steps=(2, 5))
    by_ledger = {}
    for ledger, last in (("published", 2), ("honest", 3)):
        alive = np.argsort(-r.scores[:, :, 2, 0], 1)[:, :5]
        later = np.take_along_axis(r.scores[:, :, 5, 0], alive, 1)
        alive = np.take_along_axis(alive, np.argsort(-later, 1)[:, :last], 1)
        expected = np.take_along_axis(r.final[..., 0], alive, 1).max(1)
        found = curve(r, schedule, ["1000nfe"], 3, ledger=ledger)
        np.testing.assert_allclose(found.rewards[:, 0], expected)
        by_ledger[ledger] = expected
    assert (by_ledger["published"] != by_ledger["honest"]).any()
    # The schedule itself, live and replayed, rounds halves up as it always did.
    assert (
        search(r.prompts, dataclasses.replace(schedule, n=10), ReplayEngine(r))[0].spent.finished
        == 3
    )


def test_compare_to_best_of_n():
    r, budgets = recording(), ["20nfe", "40nfe", "80nfe", "160nfe"]
    base = best_of_n_curve(r, budgets)
    itself = compare(base, base, r)
    assert (itself.omega, itself.error) == (0, 0)
    assert (itself.equivalent_n, itself.matching_budget) == (pytest.approx(16), 160)
    better = dataclasses.replace(
        base, rewards=base.rewards[:, :1] + 1.25 * (base.rewards - base.rewards[:, :1])
    )
    versus = compare(better, base, r)
    assert versus.omega == pytest.approx(25)
    assert versus.error == pytest.approx(0, abs=1e-9)
    assert versus.equivalent_n > 16
    assert 80 < versus.matching_budget < 160
    told = dataclasses.replace(
        r, scores=np.where(np.arange(11)[:, None] < 3, r.scores, r.scores[:, :, -1:])
    )
    found = compare(curve(told, SeedPruning(None, (0.3,), steps=(3,)), budgets, 30), base, told)
    assert found.omega > 3 * found.error > 0


def test_where_there_is_nothing_to_find_there_is_no_omega():
    r = recording()
    base = best_of_n_curve(r, ["20nfe", "21nfe", "22nfe"])  # two images each time
    found = compare(curve(r, SeedPruning(), ["20nfe", "21nfe", "22nfe"], 2), base, r)
    assert np.isnan([found.omega, found.error]).all()
    one = r.select(slice(0, 1))
    base = best_of_n_curve(one, ["20nfe", "40nfe", "80nfe"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(base.error).all()
        assert np.isnan(compare(base, base, one).error)  # one prompt tells nothing of others
    assert compare(base, base, one).omega == 0
    require_varied(one)
    mostly = r.scores.copy()
    mostly[1:] = 0.1 + 0.2  # equal but for rounding, in all prompts but one
    require_varied(dataclasses.replace(r, scores=mostly))
    with pytest.raises(ValueError, match=r"prompt \(11 prompts"):
        require_varied(dataclasses.replace(r, scores=mostly).select(slice(1, None)))


@pytest.fixture(scope="module")
def priced():
    return PriceOfCompute(calibrate(recording(10, 24, seed=5), images=(2, 6), fit=Fit(seeds=24)))


@pytest.mark.parametrize("images", [2, 6])
def test_the_calibrated_price_spends_the_allowance(priced, images):
    """On other prompts of the same kind, when every prompt stops at the price instead of sharing
    what is left."""
    other, allowance = recording(40, 40, seed=6), images * 10.0
    assert priced.forecast.prices[:, 0].tolist() == [20, 60]
    assert np.diff(priced.forecast.prices[:, 1]) < 0
    price = priced.forecast.price_for(allowance)
    stops = dataclasses.replace(priced, n=40, price=price, floor=price)
    orders = Orders.drawn(other, 3, np.random.default_rng(0))
    out = lockstep(stops, orders.play(other, 40), len(orders), Task(GRID, 1, allowance, 0.0, True))
    assert out.paid.nfe.mean() == pytest.approx(allowance, rel=0.15)
    # Sharing what is left spends it to the last whole move.
    spent = curve(other, priced, [f"{images}images"], 3, shared=True).spent[0]
    assert 0.97 * allowance <= spent <= allowance


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda r: curve(r, BestOfN(), ["40nfe"], ledger="magic"), "ledger"),
        (lambda r: curve(r, BestOfN(), ["40nfe"], 0), "repeats .* got 0"),
        (lambda r: curve(r, BestOfN(), ["9nfe"]), "too small for one image"),
        (lambda r: curve(r, BestOfN(), ["2pflop"]), "400nfe"),
        (lambda r: best_of_n_curve(r, ["30s"]), "30s caps nothing"),
        (lambda r: best_of_n_curve(r, ["40nfe"], utility=utility.rank_sum), "rank_sum has none"),
        (lambda r: curve(_failed(r), BestOfN(), ["40nfe"]), r"failed \(nan\)"),
        (lambda r: best_of_n_curve(_failed(r), ["40nfe"]), r"failed \(nan\)"),
        (
            lambda r: curve(_sparse(r), SeedPruning(4, (0.5,), steps=(3,)), ["90nfe"]),
            r"steps \[3\]",
        ),
        (lambda r: compare(*[best_of_n_curve(r, ["40nfe", "80nfe"])] * 2, r), "3 budgets or more"),
        (
            lambda r: compare(*[best_of_n_curve(r, ["90nfe", "80nfe", "99nfe"])] * 2, r),
            "rising, got 90nfe",
        ),
        (
            lambda r: compare(*[best_of_n_curve(r, ["20nfe", "8images", "99nfe"])] * 2, r),
            "in one unit, got 20nfe",
        ),
        (lambda r: calibrate(r, fit=Fit(utility=utility.rank_sum)), "rank_sum"),
        (lambda r: calibrate(_failed(r), checks=(2, 4, 10)), r"failed \(nan\)"),
        (lambda r: calibrate(dataclasses.replace(r, scores=r.scores * 0)), "do not vary"),
    ],
)
def test_bad_input_is_named(build, said):
    with pytest.raises(ValueError, match=said):
        build(recording())


def _failed(r):
    r.scores[0, 0, -1] = np.nan
    return dataclasses.replace(r)


def _sparse(r):
    return dataclasses.replace(r, scored=tuple(k != 3 for k in range(11)))
