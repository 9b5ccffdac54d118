"""A recording replayed gives the decisions, winners and ledgers of the live search; and whatever
the recording, the algorithm and the budget, what replayed searches and lockstep must never do."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cover import each_once
from ttsnap import BestOfN, Budget, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.cost import Rates
from ttsnap.core.grid import Grid
from ttsnap.core.looks import ESTIMATE, estimates
from ttsnap.core.moves import Kind, fresh
from ttsnap.core.plans import resolve
from ttsnap.core.price import Price
from ttsnap.core.selection import BEST, Selection
from ttsnap.core.table import ParticleTable
from ttsnap.loop.budget import task_of
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.sizing import sized_for

PROMPTS = ["a", "b", "c"]
GRID = Grid((1.0, 0.5, 0.0))


def recorded(engine, prompts):
    found = search(prompts, KeepAll(20), made := engine(prompts=len(prompts)), seed=40)
    assert all(r.spent.nfe == 20 * 8 for r in found)  # scoring every step costs no evaluation more
    recording = Recording.from_results(found, made.grid, ("brightness",))
    assert not np.isnan(recording.scores).any()
    return recording


def assert_same(live, replayed):
    for a, b in zip(live, replayed, strict=True):
        assert [c.seed for c in a.images] == [c.seed for c in b.images]
        assert [c.reward for c in a.images] == pytest.approx([c.reward for c in b.images])
        assert a.spent.cost == b.spent.cost
        assert [(m["uids"], m["stop"]) for m in a.trace] == [
            (m["uids"], m["stop"]) for m in b.trace
        ]


def test_replay_equals_live(engine):
    recording = recorded(engine, PROMPTS)
    for algorithm in (
        BestOfN(9),
        SeedPruning(12, (0.5, 0.5), steps=(1, 4)),
        SeedPruning(None, (0.4,), steps=(3,)),
    ):
        engines = engine(batch_size=5), ReplayEngine(recording)
        assert_same(
            *(
                search(PROMPTS, algorithm, one, "80nfe", seed=40, selection=Selection(keep=2))
                for one in engines
            )
        )


@pytest.mark.parametrize(("width", "shared"), each_once([1, 4], [False, True]))
def test_priced_replay_equals_live(engine, width, shared):
    names = [f"{i}" for i in range(4)]
    recording = recorded(engine, names)
    forecast = fit(recording.scores[..., 0], recording.grid.levels, estimates(1, 3, 5, 8))
    algorithm = PriceOfCompute(forecast, 20, width, price=1e-3 if shared else None)
    for budget in ("9nfe", "30nfe"):
        live_engine = engine(batch_size=3, prompts=4)
        live, alone, together = (
            search(names, algorithm, one, budget, shared=shared, seed=40)
            for one in (
                live_engine,
                ReplayEngine(recording),
                ReplayEngine(recording, capacity=live_engine.capacity),
            )
        )
        assert_same(live, together)
        if not shared:  # other rounds are another division of the pot
            assert_same(live, alone)


def test_what_was_not_recorded_is_refused():
    recording = Recording(
        ("a",), np.zeros((1, 3, 3, 1)), GRID, ("r",), first_seed=5, scored=(False, True, True)
    )
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


def test_unpaid_columns_are_hidden():
    engine = ReplayEngine(Recording(("a",), np.arange(12.0).reshape(1, 4, 3, 1), GRID, ("r",)))
    with pytest.raises(ValueError, match="been paid"):
        engine.scores(0, np.array([1]), np.array([2]), ESTIMATE)
    plan = resolve(fresh(1, 1), ParticleTable(2, 1, BEST).view, engine.grid, 1, seed=1)
    engine.submit(0, plan)
    assert engine.scores(0, np.array([1]), np.array([1]), ESTIMATE) == 4
    with pytest.raises(ValueError, match="been paid"):
        engine.scores(0, np.array([1]), np.array([2]), ESTIMATE)
    assert search(["a"], BestOfN(2), engine)[0].best.seed == 1
    with pytest.raises(ValueError, match="renoised or branched"):
        engine.submit(
            0, dataclasses.replace(plan, rows=plan.rows._replace(kind=np.array([Kind.RENOISE])))
        )


class Spy(ReplayEngine):
    """Counts what every submitted row takes, from the steps alone, and checks every score that is
    read."""

    def __init__(self, recording, **kwargs):
        super().__init__(recording, **kwargs)
        self.evaluations = np.zeros(recording.scores.shape[:2], int)
        self.looks = np.zeros(recording.scores.shape[:2], int)

    def submit(self, job, plan):
        rows, steps = plan.seed - self.recording.first_seed, self.grid.steps
        # a look ahead is an evaluation more
        reached = np.minimum(plan.rows.stop + plan.rows.score, steps)
        self.evaluations[job, rows] = np.maximum(self.evaluations[job, rows], reached)
        self.looks[job, rows] += plan.rows.score
        super().submit(job, plan)

    def scores(self, job, seeds, steps, look):
        rows = seeds - self.recording.first_seed
        assert (self.evaluations[job, rows] >= np.minimum(steps + 1, self.grid.steps)).all()
        return super().scores(job, seeds, steps, look)


@cache
def forecast(steps):
    """Fitted once per grid, as its tables take a moment; what it says is of no matter here."""
    rng = np.random.default_rng(steps)
    known = np.linspace(0.2, 1, steps + 1)
    final, noise = rng.normal(size=(6, 12, 1)), rng.normal(size=(6, 12, steps + 1))
    checks = {3: (0, 1, 2, 3), 6: (2, 4, 6)}[steps]
    return fit(known * final + np.sqrt(1 - known**2) * noise, levels(steps), estimates(*checks))


def levels(steps):
    return tuple(np.linspace(1, 0, steps + 1).tolist())


@st.composite
def recordings(draw, failures):
    prompts, seeds, steps = (
        draw(st.integers(1, 4)),
        draw(st.integers(1, 9)),
        draw(st.sampled_from([3, 6])),
    )
    rewards = draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    scores = rng.normal(size=(prompts, seeds, steps + 1, rewards)).cumsum(2)
    if draw(st.booleans()):
        scores = scores.round()  # ties
    if failures:
        scores[rng.random(scores.shape) < draw(st.sampled_from([0.1, 0.5, 1.0]))] = np.nan
    price = draw(st.sampled_from([Price(Rates(10.0, 0.0, 3.0)), Price(Rates(2.0, 1.5, 1.5))]))
    first, names = draw(st.sampled_from([0, 7])), tuple(map(str, range(prompts)))
    return Recording(names, scores, Grid(levels(steps)), ("a", "b")[:rewards], first, price=price)


@st.composite
def algorithms(draw, recording):
    steps, most = recording.grid.steps, recording.seeds
    n = draw(st.integers(1, most))
    kind = draw(st.sampled_from(["best", "prune", "price", "price"]))
    if kind == "best":
        return BestOfN(n)
    if kind == "prune":
        checks = draw(
            st.lists(st.integers(0, steps - 1), min_size=1, max_size=3, unique=True).map(sorted)
        )
        keep = draw(st.lists(st.floats(0.05, 1), min_size=len(checks), max_size=len(checks)))
        return SeedPruning(n, tuple(keep), steps=tuple(checks))
    floats = {
        "price": st.floats(1e-5, 10),
        "floor": st.sampled_from([0.0, 0.05]),
        "cap": st.floats(1, 4),
    }
    drawn = {
        name: draw(values) for name, values in {**floats, "kappa": st.floats(0.005, 1)}.items()
    }
    return PriceOfCompute(forecast(steps), n, draw(st.integers(1, 4)), **drawn)


@st.composite
def budgets(draw, recording):
    """From one image on, in evaluations, in FLOPs, or in both."""
    price, steps = recording.price.flops, recording.grid.steps
    image = steps * price.nfe + price.decodes + len(recording.reward_names) * price.reward_calls
    nfe = draw(st.integers(steps, 6 * steps))
    flops = image * draw(st.floats(1, 6))
    kind = draw(st.sampled_from(["nfe", "flops", "both"]))
    return Budget(nfe=None if kind == "flops" else nfe, flops=None if kind == "nfe" else flops)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_loop_and_lockstep_on_any_recording(data):
    failures = data.draw(st.booleans())
    recording = data.draw(recordings(failures))
    algorithm, budget = data.draw(algorithms(recording)), data.draw(budgets(recording))
    shared, keep = data.draw(st.booleans()), data.draw(st.integers(1, 3))
    engine = Spy(recording, capacity=data.draw(st.sampled_from([1, 3, 100])))
    results = search(
        recording.prompts,
        algorithm,
        engine,
        budget,
        shared=shared,
        selection=Selection(keep=keep),
        seed=recording.first_seed,
    )
    spent = [r.spent for r in results]
    # The ledger is what the engine was asked for, counted independently.
    assert [s.nfe for s in spent] == engine.evaluations.sum(1).tolist()
    assert [s.cost.decodes for s in spent] == engine.looks.sum(1).tolist()
    share = len(results) if shared else 1
    task = task_of(budget, engine, shared=shared)
    for cap, each in (
        (budget.nfe, [s.nfe for s in spent]),
        (budget.flops, [s.flops for s in spent]),
    ):
        if cap is not None:
            assert sum(each) <= len(results) * cap * (1 + 1e-9)
            assert max(each) <= share * cap * (1 + 1e-9)
    if shared and isinstance(algorithm, PriceOfCompute):
        most = max(s.nfe + task.score_cost * s.cost.decodes for s in spent)
        assert most <= max(algorithm.cap * task.allowance, task.grid.steps + task.score_cost) * (
            1 + 1e-9
        )
    for i, r in enumerate(results):
        assert 1 <= len(r.images) <= keep
        finished = r.particles.scored == task.grid.steps
        for c in r.images:
            assert finished[c.uid]
            row = c.seed - recording.first_seed
            np.testing.assert_array_equal(list(c.scores.values()), recording.final[i, row])
        value = recording.final[i, r.particles.seed[finished] - recording.first_seed].mean(-1)
        if not np.isnan(value).all():
            assert r.best.reward == np.nanmax(value)
    if priced := isinstance(algorithm, PriceOfCompute):
        # lockstep advances one at a time
        algorithm = PriceOfCompute(**{**vars(algorithm), "width": 1})
    # With two caps, only the tighter one is in the task; where they cut differently, there is
    # nothing to compare.
    if not failures and (not priced or budget.nfe is None or budget.flops is None):
        agree(recording, algorithm, budget, shared and priced)


@pytest.mark.parametrize(
    ("seed", "prompts", "seeds", "nfe"), [(0, 2, 2, 5), (2, 2, 4, 5), (5, 1, 6, 5), (0, 3, 5, 7)]
)
def test_lockstep_finishes_what_only_has_to_be_decoded(seed, prompts, seeds, nfe):
    """A pot is empty before a prompt has an image, and all that is left to do for one costs no
    evaluation."""
    rng = np.random.default_rng(seed)
    scores, names = (
        rng.normal(size=(prompts, seeds, 4, 1)).cumsum(2),
        tuple(map(str, range(prompts))),
    )
    recording = Recording(
        names, scores, Grid(levels(3)), ("a",), price=Price(Rates(10.0, 0.0, 3.0))
    )
    algorithm = PriceOfCompute(forecast(3), seeds, price=1e-5, cap=2.0, kappa=1.0)
    agree(recording, algorithm, Budget(nfe=nfe), shared=True)


def agree(recording, algorithm, budget, shared):
    """Assert that lockstep and the loop pay the same, find the same, and keep to the budget."""
    engine, prompts = Spy(recording), len(recording.prompts)
    task, algorithm = sized_for(recording, algorithm, budget, shared=shared)
    loop = search(
        recording.prompts, algorithm, engine, budget, shared=shared, seed=recording.first_seed
    )

    def lookup(searches, candidates, steps, look):
        found = recording.scores[searches[:, None], candidates, steps]
        return found

    rewards, pot = len(recording.reward_names), prompts if shared else None
    out = lockstep(algorithm, lookup, prompts, task, rewards=rewards, pot=pot)
    assert out.paid.nfe.tolist() == [r.spent.nfe for r in loop]
    assert out.paid.scored.tolist() == [r.spent.cost.decodes for r in loop]
    assert (out.winner + recording.first_seed).tolist() == [r.best.seed for r in loop]
    assert out.reward.tolist() == [r.best.reward for r in loop]
    total = out.paid.nfe + task.score_cost * out.paid.scored
    assert total.sum() <= prompts * task.allowance * (1 + 1e-9)
    assert shared or total.max() <= task.allowance * (1 + 1e-9)
