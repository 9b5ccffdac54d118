"""Requirements on finished images: how they are written, and what a search does with them.

That every algorithm keeps to them, and to its budget, is in tests/algorithms/test_contract.py.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from ttsnap import BestOfN, Budget, Grid, make_algorithm, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core import Price
from ttsnap.core.looks import estimates
from ttsnap.core.requirement import Gate, Requirement
from ttsnap.core.selection import Selection
from ttsnap.core.utility import first, rank_sum
from ttsnap.loop.dry import DryEngine
from ttsnap.recordings.replay import Recording, ReplayEngine

PROMPTS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "reward", "sign", "bound", "written"),
    [
        ("ocr>0.99", "ocr", ">", 0.99, "ocr>0.99"),
        (" brightness <= 6e-1 ", "brightness", "<=", 0.6, "brightness<=0.6"),
        ("scenes>=1", "scenes", ">=", 1.0, "scenes>=1"),
        ("clip then my.py:f < -2", "clip then my.py:f", "<", -2.0, None),
        ("safe", "safe", ">=", 0.5, "safe>=0.5"),
        ("judge:yes,model=x>=.5", "judge:yes,model=x", ">=", 0.5, None),
        ("ocr==1", "ocr==1", ">=", 0.5, None),  # a name, which no reward has
    ],
)
def test_a_requirement_is_read_and_written(text, reward, sign, bound, written):
    one = Requirement.parse(text)
    assert (one.reward, one.sign, one.bound, str(one)) == (reward, sign, bound, written or str(one))
    assert Requirement.parse(str(one)) == one


@pytest.mark.parametrize("text", ["", " ", ">1", "ocr>", "ocr>high", "ocr>nan", "ocr>inf", "a>1>2"])
def test_what_is_no_requirement(text):
    with pytest.raises(ValueError, match="cannot read requirement"):
        Requirement.parse(text)


@pytest.mark.parametrize(
    ("sign", "met"),
    [(">", [0, 0, 0, 1]), (">=", [0, 1, 0, 1]), ("<", [1, 0, 0, 0]), ("<=", [1, 1, 0, 0])],
)
def test_a_missing_score_meets_nothing(sign, met):
    assert Requirement("x", sign, 0.5).met(np.array([0.2, 0.5, np.nan, 0.9])).tolist() == met


def test_all_must_be_met_and_refusals_are_counted_by_each():
    gate = Gate.of(["a>0", "b<=1"], ["a", "b"])
    scores = np.array([[1, 1], [0, 1], [1, 2], [-1, 3]], float)
    assert gate.admits(scores).tolist() == [True, False, False, False]
    assert gate.refusals(scores) == {"a>0": 2, "b<=1": 2}
    assert gate.named(["x", "y"]).words == ["x>0", "y<=1"]
    with pytest.raises(ValueError, match="c>1"):
        Gate.of(["a>1", "c>1"], ["a", "b"])
    with pytest.raises(ValueError, match="finite bound"):
        Requirement("x", "==", 1)
    counted = Gate.of(["a>0", "b<=1"], ["a", "b"], counted=1)
    assert Selection(gate=counted).values(np.array([[1.0, 9.0], [3.0, 0.0]])).tolist() == [1, 3]
    with pytest.raises(ValueError, match="rank_sum"):
        Selection(rank_sum, gate=counted).check_scores_each("rbf")


class Falling(DryEngine):
    """Seed s has the utility -s, and passes from seed `first` on."""

    def __init__(self, first, **more):
        super().__init__(Grid(tuple(np.linspace(1, 0, 9))), ("low", "late"), **more)
        self.first, self.gate = first, Gate.of(["late"], self.reward_names, 1)

    def scores(self, job, seeds, steps, look):
        return np.stack([-seeds.astype(float), (seeds >= self.first).astype(float)], 1)


@pytest.mark.parametrize(("first", "seeds"), [(0, 4), (2, 4), (4, 5), (7, 8), (11, 10), (99, 10)])
def test_what_is_left_of_a_budget_goes_to_further_seeds_until_one_passes(first, seeds):
    dry = Falling(first)
    (result,) = search(
        ["x"], BestOfN(4), dry, Budget(nfe=80), selection=Selection(gate=dry.gate, keep=3)
    )
    assert result.spent.seeds == seeds
    assert [c.seed for c in result.images] == [s for s in range(seeds) if s >= first][:3]
    assert result.spent.refused == {"late>=0.5": min(first, seeds)}
    if first > 9:
        assert "10 of 10" in result.warnings[0]
        assert len(result.warnings) == 2
        with pytest.raises(ValueError, match="'x': all"):
            _ = result.best


def test_a_search_without_a_budget_or_that_is_stopped_does_not_go_on():
    dry, ticks = Falling(99), itertools.count()
    (result,) = search(["x"], BestOfN(4), dry, selection=Selection(gate=dry.gate))
    assert (result.spent.seeds, result.images) == (4, ())
    stop = lambda: next(ticks) > 4  # noqa: E731
    (result,) = search(
        ["x"],
        BestOfN(1),
        dry,
        Budget(nfe=400),
        selection=Selection(gate=dry.gate),
        should_stop=stop,
    )
    assert 1 < result.spent.seeds < 10


def test_the_priced_policy_does_not_take_a_refused_image_for_its_best(engine):
    recorded = search(PROMPTS, KeepAll(20), engine(), seed=40)
    recording = Recording.from_results(recorded, engine().grid, ("brightness",))
    forecast = fit(recording.scores[..., 0], engine().grid.levels, estimates(1, 3, 5, 8))
    for bound, best in ((9.0, [-np.inf] * 3), (0.0, None)):
        gate = Gate.of([Requirement("brightness", ">=", bound)], recording.reward_names)
        results = search(
            PROMPTS,
            PriceOfCompute(forecast, 20),
            engine(),
            "80nfe",
            seed=40,
            selection=Selection(gate=gate),
        )
        found = [float(r.state.best) for r in results]
        assert found == (best or [r.best.reward for r in results])


def test_ranks_are_those_among_the_images_that_pass(engine):
    """Among all, seed 1 is ahead by the refused ones, which are worse by b alone."""
    table = np.array([[3.0, 1.0, 1], [2.0, 3.0, 1], [0.0, 2.0, 0], [0.1, 2.1, 0], [0.2, 2.2, 0]])

    class Table(DryEngine):
        def scores(self, job, seeds, steps, look):
            return table[seeds.astype(int)]

    dry = Table(engine().grid, ("a", "b", "ok"))
    best = {}
    for name, gate in (("all", None), ("gated", Gate.of(["ok"], dry.reward_names, 2))):
        (result,) = search(
            ["x"],
            BestOfN(5),
            dry,
            selection=Selection(utility=rank_sum if gate else first(rank_sum, 2), gate=gate),
        )
        best[name] = (result.best.seed, result.best.reward)
    assert best == {"all": (1, 9.0), "gated": (0, 3.0)}


def test_images_that_differ_are_chosen_among_those_that_pass():
    """The refused ones are the least alike of all; of the others, seed 6 is."""
    kinds = np.array([[-1.0, 0.0]] * 3 + [[1.0, 0.0]] * 3 + [[1.0, 1.0]] + [[1.0, 0.0]])

    class Featured(Falling):
        def submit(self, job, plan):
            super().submit(job, plan)
            self._done = [dataclasses.replace(one, features=kinds[one.uids]) for one in self._done]

    dry = Featured(3, price=Price(features=1))
    for weight, seeds in ((0.0, [3, 4]), (9.0, [3, 6])):
        (result,) = search(
            ["x"], BestOfN(8), dry, selection=Selection(gate=dry.gate, keep=2, diversity=weight)
        )
        assert [candidate.seed for candidate in result.images] == seeds


@pytest.mark.parametrize("name", ["best-of-n", "seed-pruning"])
def test_a_recording_replayed_finds_what_the_live_search_finds(engine, name):
    recorded = search(PROMPTS, KeepAll(20), engine(), seed=40)
    recording = Recording.from_results(recorded, engine().grid, ("brightness",))
    middle = float(np.quantile(recording.scores[:, :, -1], 0.7))
    gate = Gate.of([Requirement("brightness", "<=", middle)], recording.reward_names)
    algorithm = make_algorithm(name)
    live = search(
        PROMPTS,
        algorithm,
        engine(batch_size=5),
        "80nfe",
        seed=40,
        selection=Selection(keep=2, gate=gate),
    )
    replayed = search(
        PROMPTS,
        algorithm,
        ReplayEngine(recording),
        "80nfe",
        seed=40,
        selection=Selection(keep=2, gate=gate),
    )
    for a, b in zip(live, replayed, strict=True):
        assert [c.seed for c in a.images] == [c.seed for c in b.images]
        assert a.spent.cost == b.spent.cost
        assert a.spent.refused == b.spent.refused
        assert all(c.reward <= middle for c in a.images)
    never = Gate.of(["brightness>9"], recording.reward_names)
    with pytest.raises(ValueError, match=r"recorded are 40\.\.59"):
        search(
            PROMPTS,
            BestOfN(20),
            ReplayEngine(recording),
            "400nfe",
            seed=40,
            selection=Selection(gate=never),
        )


def test_a_search_ends_once_it_has_enough_and_the_rest_is_not_charged():
    grid = Grid(tuple(np.linspace(1, 0, 5)))
    scores = np.random.default_rng(0).random((1, 40, 5, 2))
    scores[0, :, -1] = np.random.default_rng(1).random((40, 2)) / 2.5
    scores[0, 17, 1:] = 0.9
    engine = ReplayEngine(Recording(("a",), scores, grid, ("x", "y")))
    enough = Gate.of(["x", "y"], ["x", "y"])
    for algorithm in (make_algorithm("seed-pruning", n=40, keep=(), levels=()), BestOfN(40)):
        (whole,) = search(["a"], algorithm, engine)
        (ended,) = search(["a"], algorithm, engine, selection=Selection(enough=enough))
        assert ended.best.seed == whole.best.seed == 17
        assert ended.spent.ended == "all was found"
        assert not ended.warnings
    # seed pruning finishes a few at a time where one of them may end it
    pruned = make_algorithm("seed-pruning", n=40, keep=(1.0,), steps=(1,))
    (whole,) = search(["a"], pruned, engine)
    (ended,) = search(["a"], pruned, engine, selection=Selection(enough=enough))
    assert ended.best.seed == whole.best.seed
    assert ended.spent.nfe < whole.spent.nfe == 160
    (none,) = search(
        ["a"], pruned, engine, selection=Selection(enough=Gate.of(["x>=1"], ["x", "y"]))
    )
    assert (none.spent.nfe, none.spent.ended, none.best.seed) == (160, "", 17)
