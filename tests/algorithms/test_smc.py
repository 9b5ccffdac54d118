"""Sequential Monte Carlo against answers in closed form, and resampling against its bounds.

With n particles the sum of the final weights is an unbiased estimate of Z = E[exp(lam r)], and
sum_i w_i f(x_i) one of E[f exp(lam r)], for any potential, resampler, threshold and temper,
adaptive ones included: so z-tests are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap import Grid, make_algorithm, search
from ttsnap.algorithms.smc.resampling import RESAMPLERS, ess, log_sum_exp, normalised, temper_by_ess
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.core import Outcome, Task
from ttsnap.core.selection import Selection
from ttsnap.loop.dry import DryEngine

GRID = Grid(tuple(np.linspace(1, 0, 7)))
everywhere = {"every": 1, "first": 1.0, "last": 0.0}


# --- weights and resampling -----------------------------------------------------------------------


def test_weights_survive_any_size():
    logw = np.array([0.0, np.log(3.0), -np.inf])
    for shift in (0.0, 1e4, -1e4, 1e6):
        np.testing.assert_allclose(normalised(logw + shift), [0.25, 0.75, 0], atol=1e-9)
        assert log_sum_exp(logw + shift) == pytest.approx(shift + np.log(4))
        assert ess(logw + shift) == pytest.approx(1 / (0.25**2 + 0.75**2))
    nothing = np.full(4, -np.inf)
    assert normalised(nothing).tolist() == [0.25] * 4
    assert ess(nothing) == 4
    assert log_sum_exp(nothing) == -np.inf


def test_temperature_stops_where_the_sample_thins():
    r = np.random.default_rng(0).normal(size=50)
    lam = temper_by_ess(lambda lam: lam * r, 0.0, 10.0, 25.0)
    assert 0 < lam < 10
    assert ess(lam * r) == pytest.approx(25, abs=1e-6)
    assert ess(lam * r) < 25
    assert temper_by_ess(lambda lam: lam * r, 0.0, 0.1, 25.0) == 0.1


weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 10)), min_size=1, max_size=20).filter(
    any
)


def test_a_position_that_rounds_to_one_is_the_last():
    largest = SimpleNamespace(random=lambda: np.nextafter(1, 0))
    assert RESAMPLERS["systematic"](np.ones(3), 3, largest).max() == 2


@pytest.mark.parametrize("name", RESAMPLERS)
@settings(max_examples=100, deadline=None)
@given(weights=weights, m=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_counts_stay_within_the_bounds_of_their_scheme(name, weights, m, seed):
    w = np.array(weights)
    found = RESAMPLERS[name](w, m, np.random.default_rng(seed))
    assert found.shape == (m,)
    assert (w[found] > 0).all()
    counts, expected = np.bincount(found, minlength=len(w)), m * w / w.sum()
    if name in ("systematic", "ssp"):
        assert (counts >= np.floor(expected - 1e-9)).all()
        assert (counts <= np.ceil(expected + 1e-9)).all()
    if name == "residual":
        assert (counts >= np.floor(expected - 1e-9)).all()
    if name == "stratified":
        assert (np.abs(counts - expected) < 2 + 1e-9).all()


@pytest.mark.parametrize("name", RESAMPLERS)
@pytest.mark.parametrize("m", [3, 30])
def test_expected_counts_are_the_weights_or_even_where_there_are_none(name, m):
    rng, uneven = np.random.default_rng(0), np.array([0.31, 0.0, 0.02, 0.17, 0.24, 0.05, 0.21])
    for some, w in ((uneven, uneven), (np.zeros(7), np.full(7, 1 / 7))):
        counts = np.stack(
            [np.bincount(RESAMPLERS[name](some, m, rng), minlength=7) for _ in range(3000)]
        )
        z = (counts.mean(0) - m * w) / np.maximum(counts.std(0), 1e-9) * np.sqrt(len(counts))
        assert np.abs(z[counts.std(0) > 0]).max() < 4
        np.testing.assert_allclose(
            counts.mean(0)[counts.std(0) == 0], (m * w)[counts.std(0) == 0], atol=1e-9
        )


# --- a Markov chain without discretisation error --------------------------------------------------


class Chain(DryEngine):
    """x_0 ~ N(0, 1), x_{k+1} = A x_k + B xi. Scores: r(E[x_K | x_k]), and that mean, for the test
    to read."""

    A, B = 0.9, 0.6
    variance = A**12 + B**2 * (1 - A**12) / (1 - A**2)
    """Of x_K, in 6 steps."""

    def __init__(self, reward):
        super().__init__(GRID, ("r", "x"))
        self.reward, self._rng = reward, np.random.default_rng(0)
        self.x: dict[tuple[int, int], float] = {}

    def submit(self, job, plan):
        uids, rows = plan.uid, plan.rows
        old = [
            self.x[job, p] if p >= 0 else self._rng.standard_normal() for p in rows.parent.tolist()
        ]
        x, steps = np.array(old), rows.stop - rows.start
        for k in range(int(steps.max(initial=0))):
            x = np.where(steps > k, self.A * x + self.B * self._rng.standard_normal(len(x)), x)
        self.x.update(
            {(job, uid): value for uid, value in zip(uids.tolist(), x.tolist(), strict=True)}
        )
        end = self.A ** (GRID.steps - rows.stop) * x
        scores = np.stack([self.reward(end), end], 1)
        ahead = rows.stop < GRID.steps
        self._done.append(Outcome(job, uids, rows.stop, ahead, scores, [None] * len(uids)))


def first_reward(scores):
    return scores[..., 0]


@dataclass(frozen=True)
class Watched(SMC):
    """Keeps every final state, with the particles it speaks of."""

    seen: list[Any] = field(default_factory=list, compare=False)

    def step(self, s, particles, rng):
        move, s = super().step(s, particles, rng)
        if move is None:
            self.seen.append((s, particles.scores[s.uids, -1]))
        return move, s


def linear(x):
    return 0.5 * x


POTENTIALS, TEMPERS = (
    ("difference", "max", "sum", "current"),
    ("constant", "linear", "increase", "adaptive"),
)
RUNS = [
    pytest.param(
        p,
        t,
        tuple(RESAMPLERS)[(i + j) % 5],
        (0.5, 1.0, 0.0, 0.8)[(i + 2 * j) % 4],
        (1.0, 0.4)[(i + j) % 2],
        marks=[pytest.mark.slow] if (j - i) % 4 > 1 else [],
    )
    for i, p in enumerate(POTENTIALS)
    for j, t in enumerate(TEMPERS)
]
"""Each potential with two ways to temper, and each of those with two potentials, all resamplers and
thresholds among them; the rest is slow."""


@pytest.mark.parametrize(("potential", "temper", "resampler", "threshold", "shrink"), RUNS)
def test_estimates_are_unbiased(potential, temper, resampler, threshold, shrink):
    """Of Z and of E[x exp(lam r)], x ~ N(0, v) at the end of the chain, r = 2 - .3 (x - 1)^2."""
    if temper == "adaptive":
        threshold = min(threshold or 0.5, 0.8)
    lam = 0.4 if potential == "sum" else 1.0  # the sum's weights have heavy tails
    algorithm = Watched(
        12, lam, potential, temper, None, resampler, threshold, shrink=shrink, **everywhere
    )
    chain, runs = Chain(lambda x: 2.0 - 0.3 * (x - 1) ** 2), 300
    search(
        [f"{i}" for i in range(runs)], algorithm, chain, selection=Selection(utility=first_reward)
    )
    assert len(algorithm.seen) == runs
    c = 0.6 * lam  # exp(2 lam - c (x - 1)^2 / 2)
    precision = 1 / chain.variance + c
    z = np.exp(2 * lam - 0.5 * c + 0.5 * c**2 / precision) / np.sqrt(chain.variance * precision)
    totals = np.array([np.exp(s.logw).sum() for s, _ in algorithm.seen])
    moments = np.array([(np.exp(s.logw) * scores[:, 1]).sum() for s, scores in algorithm.seen])
    for found, known in ((totals, z), (moments, z * c / precision)):
        assert abs(found.mean() - known) < 4 * found.std(ddof=1) / np.sqrt(runs)


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("temper", TEMPERS)
def test_without_resampling_weights_are_those_of_the_finished_reward(potential, temper):
    algorithm = Watched(7, 3.0, potential, temper, ess=0.0, **everywhere)
    search(["a"], algorithm, Chain(lambda x: x - 40), selection=Selection(utility=first_reward))
    ((state, scores),) = algorithm.seen
    np.testing.assert_allclose(state.logw, 3.0 * scores[:, 0] - np.log(7), atol=1e-9)
    np.testing.assert_allclose(state.total, 3.0 * scores[:, 0], atol=1e-9)


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("temper", ["constant", "adaptive"])
def test_adding_to_all_rewards_changes_nothing_else(potential, temper):
    found = []
    for shift in (0.0, 1e4, -1e4):
        algorithm = Watched(16, 2.0, potential, temper, **everywhere)
        (result,) = search(
            ["a"],
            algorithm,
            Chain(lambda x, c=shift: x + c),
            selection=Selection(utility=first_reward),
        )
        found.append(
            (algorithm.seen[0][0], [(m["parents"], m["uids"], m["drop"]) for m in result.trace])
        )
    for (state, moves), shift in zip(found[1:], (1e4, -1e4), strict=True):
        assert moves == found[0][1]
        np.testing.assert_allclose(normalised(state.logw), normalised(found[0][0].logw), atol=1e-6)
        assert state.log_z == pytest.approx(found[0][0].log_z + 2.0 * shift, abs=1e-6)
    assert len({tuple(parents) for parents, _, _ in found[0][1][1:]}) > 1


def test_copies_come_apart(engine):
    greedy = SMC(6, 1e6, "current", "constant", ess=1.0, every=2, first=1.0, last=0.0)
    (result,) = search(["a"], greedy, engine(kernel="ddim"), selection=Selection(keep=6))
    assert len(set(result.trace[-1]["parents"])) == 1
    assert len(torch.unique(torch.stack([c.image for c in result.images]), dim=0)) == 6


# --- moves ----------------------------------------------------------------------------------------


class Failing(Chain):
    """Scores are missing by rule."""

    def __init__(self, missing):
        super().__init__(linear)
        self.missing = missing

    def submit(self, job, plan):
        super().submit(job, plan)
        self._done[-1].scores[self.missing(plan.uid, plan.rows.stop)] = np.nan  # type: ignore[index]


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("temper", ["increase", "adaptive"])
@pytest.mark.parametrize(
    "rule", ["some", "all at first", "all in the middle", "all but one", "at the end", "always"]
)
def test_missing_scores_weigh_nothing(potential, temper, rule):
    missing = {
        "some": lambda uids, stop: uids % 3 == 1,
        "all at first": lambda uids, stop: stop == 0,
        "all in the middle": lambda uids, stop: stop == 2,
        "all but one": lambda uids, stop: (uids != 4) & (stop == 1),
        "at the end": lambda uids, stop: stop == 6,
        "always": lambda uids, stop: stop >= 0,
    }[rule]
    algorithm = Watched(8, 1.0, potential, temper, **everywhere)
    (result,) = search(
        ["a"], algorithm, Failing(missing), selection=Selection(utility=first_reward, keep=2)
    )
    state, _ = algorithm.seen[0]
    assert result.images
    assert not np.isnan(state.logw).any()
    gone = missing(state.uids, np.full(len(state.uids), 6))
    assert (state.logw[gone] == -np.inf).all()
    assert np.isfinite(state.logw[~gone]).all()
    for move in result.trace[1:]:
        bad = missing(np.array(move["parents"]), np.array(move["start"]))
        assert not bad.any() or bad.all()
    if rule == "all but one":
        assert set(result.trace[2]["parents"]) == {4}


def test_the_funnel_narrows():
    algorithm = Watched(40, 1.0, shrink=0.25, **everywhere)
    (result,) = search(["a"], algorithm, Chain(linear), selection=Selection(utility=first_reward))
    assert [len(m["uids"]) for m in result.trace] == [40, 30, 23, 17, 13, 10]


def test_checks_are_where_the_published_code_has_them():
    steps = np.arange(101)  # SDXL's grid of 100 steps: scaled linear betas, leading spacing
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - betas)[np.clip(1000 - 10 * steps, 0, 999)]
    sigma, alpha = np.sqrt(1 - alpha), np.sqrt(alpha)
    grid = Grid((*(sigma / (alpha + sigma))[:100].tolist(), 0.0))
    assert make_algorithm("fk-steering").init(Task(grid)).steps == (20, 40, 60, 80, 100)
    assert SMC().init(Task(Grid((1.0, 0.0)))).steps == (1,)
    assert SMC(**everywhere).init(Task(GRID)).steps == (0, 1, 2, 3, 4, 6)


@pytest.mark.parametrize(("lam", "left"), [(1e-9, 10), (1e9, 1)])
def test_without_noise_resampling_is_pruning(lam, left):
    """Equal weights keep everybody, uneven ones the best, once; checks are where they are asked
    for."""
    grid = Grid(tuple(np.linspace(1, 0, 36)))
    algorithm = SMC(10, lam=lam, ess=1.0, steps=(6, 13, 20, 27), unique=True)
    result = search([""], algorithm, DryEngine(grid, ("r",), offers=frozenset()))[0]
    assert result.spent.nfe == 10 * 7 + left * 28
    assert [move["stop"][0] for move in result.trace] == [6, 13, 20, 27, 35]
    assert all(len(set(move["parents"])) == left for move in result.trace[1:])
