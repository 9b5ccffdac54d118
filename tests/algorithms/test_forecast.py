"""The forecast model against closed forms: fitting, updating, reservation values."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.forecast import Forecast, update
from ttsnap.algorithms.pricing.reservation import PRICES, STATES, break_even, look_up, reservation
from ttsnap.core.looks import estimates

LEVELS, STEPS = (1.0, 0.75, 0.5, 0.25, 0.0), (1, 2, 4)
CHECKS = estimates(*STEPS)
MEAN = np.array([-0.5, 0.2, 1.0])
COV = np.array([[0.5, 0.3, 0.2], [0.3, 0.6, 0.4], [0.2, 0.4, 0.8]])
SIGMA = np.array([[1.5, 0.8, 0.5], [0.8, 1.2, 0.7], [0.5, 0.7, 1.0]])
SPREAD = (-0.4, 0.3, -0.1)
"""log s^2 = -0.4 + 0.3 m - 0.1 m^2, m the prompt's mean reward."""


def gaussian(prompts, seeds, seed=0):
    """(P, S, 5) trajectories of the model with the parameters above; steps that are no checks hold
    nan."""
    rng = np.random.default_rng(seed)
    m = rng.multivariate_normal(MEAN, COV, prompts)
    s = np.exp(0.5 * (SPREAD[0] + SPREAD[1] * m[:, -1] + SPREAD[2] * m[:, -1] ** 2))
    z = rng.multivariate_normal(np.zeros(3), SIGMA, (prompts, seeds))
    out = np.full((prompts, seeds, 5), np.nan)
    out[..., list(STEPS)] = m[:, None] + s[:, None, None] * z
    return out


@pytest.fixture(scope="module")
def fitted():
    return fit(gaussian(1200, 400), LEVELS, CHECKS)


@pytest.fixture(scope="module")
def table(fitted):
    return reservation(fitted, (2.0, 1.0, 2.0))


def known():
    """The same model with its parameters exact."""
    beta, gamma, residual = np.zeros((3, 3)), np.zeros((3, 3)), np.empty(3)
    for j in range(3):
        beta[j, :j] = np.linalg.solve(SIGMA[:j, :j], SIGMA[:j, j])
        residual[j] = SIGMA[j, j] - beta[j, :j] @ SIGMA[:j, j]
        gamma[j, : j + 1] = np.linalg.solve(SIGMA[: j + 1, : j + 1], SIGMA[: j + 1, -1])
    paths = np.random.default_rng(0).normal(size=(400, 3)).cumsum(1)
    spread = np.array(SPREAD)
    return Forecast(
        LEVELS,
        CHECKS,
        MEAN,
        COV,
        beta,
        residual,
        gamma,
        spread,
        (-3.0, 2.0),
        8.0,
        paths,
        np.empty((0, 2)),
    )


def test_fit_recovers_the_model(fitted):
    exact = known()
    np.testing.assert_allclose(fitted.mean, MEAN, atol=4 * np.sqrt(0.8 / 1200))
    np.testing.assert_allclose(fitted.cov, COV, atol=4 * np.sqrt(2 / 1200) * 0.8)
    # Dividing by each prompt's own spread, not the true one, adds a bias of order 1 / seeds to the
    # statistical error.
    np.testing.assert_allclose(fitted.beta, exact.beta, atol=0.01)
    np.testing.assert_allclose(fitted.gamma, exact.gamma, atol=0.01)
    np.testing.assert_allclose(fitted.residual, exact.residual, rtol=0.01)
    np.testing.assert_allclose(fitted.spread, SPREAD, atol=0.03)
    # What remains of log s^2 is the sampling error of a variance of 400 seeds; worth 50
    # observations, the most.
    assert fitted.spread_count == 50.0
    low, high = fitted.spread_range
    assert low < SPREAD[0] < high
    at = np.array([-0.5, 0.0, 1.0])
    expected = np.exp(SPREAD[0] + SPREAD[1] * at + SPREAD[2] * at**2)
    np.testing.assert_allclose(fitted.prior_variance(at), expected, rtol=0.03)
    assert np.exp(low) <= fitted.prior_variance(np.array([-50.0]))[0] <= np.exp(high)
    # Forecasts are standardised: their last column is the finished reward within its prompt.
    assert len(fitted.paths) <= 2000
    assert fitted.paths[:, -1].std() == pytest.approx(1, abs=0.07)
    assert np.var(fitted.paths[:, 0]) == pytest.approx(0.5**2 / 1.5, abs=0.02)
    few = fit(gaussian(20, 40), LEVELS, CHECKS)  # which share one spread
    assert few.spread[1:].tolist() == [0.0, 0.0]
    assert 2 <= few.spread_count <= 50


@pytest.mark.parametrize(
    "order", [[(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)], [(0, 0), (1, 0), (2, 0)]]
)
def test_update_is_exact_conditioning(order):
    """Candidate i's check j, in this order, against the joint Gaussian of the prompt's mean and all
    the scores."""
    f, s2 = known(), 0.7
    rng = np.random.default_rng(3)
    m = rng.multivariate_normal(MEAN, COV)
    x = m + np.sqrt(s2) * rng.multivariate_normal(np.zeros(3), SIGMA, 3)
    mean, cov = MEAN, COV
    for n, (i, j) in enumerate(order, 1):
        seen = np.where(np.arange(3) <= j, x[i], 0.0)
        mean, cov, square = update(f, seen, np.array(j), mean, cov, np.array(s2))
        rows = order[:n]
        joint = np.array(
            [[COV[a, b] + (p == q) * s2 * SIGMA[a, b] for q, b in rows] for p, a in rows]
        )
        across = np.array([COV[:, b] for _, b in rows]).T
        scores = np.array([x[p, b] - MEAN[b] for p, b in rows])
        gain = across @ np.linalg.inv(joint)
        np.testing.assert_allclose(mean, MEAN + gain @ scores, rtol=0, atol=1e-9)
        np.testing.assert_allclose(cov, COV - gain @ across.T, rtol=0, atol=1e-9)
        # The squared innovation, over its predictive variance, by conditioning the last score on
        # those before.
        before = joint[:-1, :-1]
        weights = np.linalg.solve(before, joint[:-1, -1]) if n > 1 else np.empty(0)
        variance = joint[-1, -1] - weights @ joint[:-1, -1]
        assert square == pytest.approx(
            (scores[-1] - weights @ scores[:-1]) ** 2 / variance * s2, abs=1e-9
        )


def normal_paths(share):
    """Forecasts at two checks, (n, 2): the first explains `share` of the variance, the second is
    the reward itself.

    Normal quantiles, not draws, and the increment's are the same from every first forecast.
    """
    first, increment = (norm.ppf((np.arange(n) + 0.5) / n) for n in (31, 20_000))
    first, increment = np.meshgrid(
        np.sqrt(share) * first, np.sqrt(1 - share) * increment, indexing="ij"
    )
    return np.stack([first, first + increment], -1).reshape(-1, 2)


def closed_form(mean, sd, cost):
    """The z at which E[(X - z)+] = cost, X ~ N(mean, sd^2)."""

    def gain(z):
        t = (mean - z) / sd
        return float(sd * (t * norm.cdf(t) + norm.pdf(t)) - cost)

    return brentq(gain, mean - 10 * sd - cost, mean + 10 * sd)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_reservation_one_check_ahead(share):
    f = dataclasses.replace(
        known(), checks=estimates(1, 4), paths=normal_paths(share), prices=np.empty((0, 2))
    )
    table = reservation(f, (2.0, 3.0))
    assert table.shape == (len(PRICES), 3, len(STATES))
    np.testing.assert_array_equal(table[:, 2], np.tile(STATES, (len(PRICES), 1)))
    assert np.ptp(table[:, 0], axis=1).max() == 0  # a fresh seed has no state
    # Away from the ends of the table; its grid of 0.1 adds a little to the spread.
    for i in range(4, len(PRICES), 4):
        for q in range(30, 61, 5):
            exact = closed_form(STATES[q], np.sqrt(1 - share), 3 * PRICES[i])
            if abs(exact) < 3.5:
                assert table[i, 1, q] == pytest.approx(exact, abs=0.02), (PRICES[i], STATES[q])
        if share == 0:  # a check that tells nothing only costs
            assert table[i, 0, 0] == pytest.approx(closed_form(0.0, 1.0, 5 * PRICES[i]), abs=0.02)


def test_look_up_interpolates(table):
    i, q = np.meshgrid(np.arange(len(PRICES) - 1), np.arange(len(STATES) - 1), indexing="ij")
    for j in range(4):
        np.testing.assert_allclose(
            look_up(table, PRICES[i], np.array(j), STATES[q]), table[i, j, q], atol=1e-9
        )
    between = look_up(
        table, np.sqrt(PRICES[3] * PRICES[4]), np.array(1), np.array(STATES[7] + 0.05)
    )
    assert between == pytest.approx(table[3:5, 1, 7:9].mean(), abs=1e-9)
    beyond = look_up(
        table, PRICES[5], np.array([2, 0]), np.array([STATES[-1] + 1.5, STATES[-1] + 1.5])
    )
    np.testing.assert_allclose(beyond, [table[5, 2, -1] + 1.5, table[5, 0, -1]], atol=1e-9)
    low, high = look_up(table, np.array([1e-12, 1e9]), np.array(1), np.array(0.0))
    assert (low, high) == pytest.approx((table[0, 1, 45], table[-1, 1, 45]), abs=0.01)


def test_break_even_inverts_look_up(table):
    rng = np.random.default_rng(0)
    j, state = rng.integers(0, 3, 500), rng.uniform(-6, 6, 500)
    price = np.exp(rng.uniform(np.log(PRICES[0]), np.log(PRICES[-2]), 500))
    found = break_even(table, j, state, look_up(table, price, j, state))
    # any price gives that value
    flat = look_up(table, price * 1.05, j, state) > look_up(table, price, j, state) - 1e-6
    np.testing.assert_allclose(found[~flat], price[~flat], rtol=1e-6)
    assert flat.mean() < 0.05
    beyond = break_even(table, np.array(1), np.array(0.0), np.array([-np.inf, -50, 50, np.inf]))
    assert beyond.tolist() == [np.inf, np.inf, 0.0, 0.0]


def test_json_round_trip(fitted):
    priced = dataclasses.replace(fitted, prices=np.array([[100.0, 0.05], [400.0, 0.01]]))
    again = Forecast.from_json(json.loads(json.dumps(priced.to_json())))
    for field in dataclasses.fields(Forecast):
        a, b = getattr(priced, field.name), getattr(again, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(b, a.round(3) if field.name == "paths" else a)
        else:
            assert b == a
    assert again.price_for(100) == pytest.approx(0.05)
    assert again.price_for(200) == pytest.approx(np.sqrt(0.05 * 0.01))
    assert again.price_for(1e6) == pytest.approx(0.01)
    assert Forecast.from_json(fitted.to_json()).prices.shape[0] == 0


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda x: fit(x, LEVELS, estimates(1, 2)), r"4, got \[1, 2\]"),
        (lambda x: fit(x, LEVELS, ()), r"4, got \[\]"),
        (lambda x: fit(x, LEVELS, estimates(2, 1, 4)), "must rise"),
        (lambda x: fit(x, LEVELS, estimates(-1, 4)), "must rise"),
        (lambda x: fit(x[:2], LEVELS, CHECKS), "got 2 of 40"),
        (lambda x: fit(x[:, :4], LEVELS, CHECKS), "got 20 of 4"),
        (lambda x: fit(x, LEVELS, estimates(1, 3, 4)), r"\[1, 3, 4\] hold nan"),
        (lambda x: fit(x * 0 + 1.0, LEVELS, CHECKS), "nothing to search for"),
        (lambda x: fit(x, LEVELS, CHECKS).price_for(100), "without prices"),
        (lambda x: Forecast.from_json({"magic": 1}), "not a forecast"),
    ],
)
def test_bad_input_is_named(build, said):
    with pytest.raises(ValueError, match=said):
        build(gaussian(20, 40))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [float("nan")] * 3},
        {"mean": [1e300] * 3},
        {"mean": [[1.0], 2.0, 3.0]},
        {"mean": ["1", "2", "3"]},
        {"mean": [1.0]},
        {"mean": 10**400},
        {"checks": [1, 3.5, 4]},
        {"checks": [1, True, 4]},
        {"checks": [[1], 3, 4]},
        {"checks": None},
        {"checks": ["glance@0", 3, 4]},
        {"checks": ["draft:1@0", "draft:2@0", 4]},
        {"checks": [1, 2, "draft:1@4"]},
        {"checks": [-1, 3, 4]},
        {"checks": [10**400, 3, 4]},
        {"checks": [1, 3, 9]},
        {"levels": [0.0, 1.0, 0.5, 0.2, 0.0]},
        {"levels": 3},
        {"cov": [[1, 2], [3, 4]]},
        {"cov": (-np.eye(3)).tolist()},
        {"residual": [0.0, 1.0, 1.0]},
        {"spread_count": [1.0]},
        {"spread_count": 0.0},
        {"spread_range": [2, 1]},
        {"paths": []},
        {"prices": [[1.0, -1.0]]},
        {"prices": [1.0]},
        {"extra": 1},
    ],
)
def test_forged_forecasts_are_refused(fitted, change):
    with pytest.raises(ValueError, match=rf"{next(iter(change))}|glance|not a forecast"):
        Forecast.from_json({**fitted.to_json(), **change})
