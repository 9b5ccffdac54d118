"""Curve and prediction metrics against known answers; best-of-N is in test_simulate.py."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnap.core import metrics


def test_omega_of_known_curves():
    budgets = np.arange(400, 4001, 200.0)
    base = np.log(budgets)
    assert metrics.omega(budgets, base[0] + 1.3 * (base - base[0]), base) == pytest.approx(30)


def test_equivalents():
    rewards = np.random.default_rng(0).normal(size=(40, 30))
    assert metrics.equivalent_n(metrics.best_of_n(rewards, 8).mean(), rewards) == pytest.approx(8)
    assert metrics.equivalent_n(99.0, rewards) == float("inf")
    with pytest.raises(ValueError, match=r"1\.\.30"):
        metrics.best_of_n(rewards, 31)
    # rounding
    assert (
        metrics.equivalent_n(metrics.best_of_n(rewards, rewards.shape[-1]).mean() + 1e-15, rewards)
        < 99
    )
    budgets, curve = np.array([10.0, 20, 40]), np.array([1.0, 2, 4])
    assert metrics.matching_budget(budgets, curve, 3.0) == 30
    assert metrics.matching_budget(budgets, curve, 0.5) == 10
    assert metrics.matching_budget(budgets, curve, 5.0) == float("inf")
    assert metrics.matching_budget(budgets, curve, curve[-1] + 1e-15) == pytest.approx(budgets[-1])


def test_prediction_metrics():
    final = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1]])
    early = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4]])
    assert metrics.rank_correlation(early, final) == pytest.approx(0)
    assert metrics.rank_correlation(early[:1], final[:1], kind="kendall") == pytest.approx(1)
    assert metrics.top_fraction(early, final, 0.5) == (0.5, 1.0)
    with pytest.raises(ValueError, match="fraction"):
        metrics.top_fraction(early, final, 0)
    with pytest.raises(ValueError, match="kind"):
        metrics.rank_correlation(early, final, kind="pearson")


def test_how_many_values_that_are_alike_are_worth():
    assert metrics.effective(10, 0.0) == metrics.effective(10, -0.1) == 10
    assert metrics.effective(10, 1.0) == 1
    np.testing.assert_allclose(metrics.effective(3, 0.5), 1.5, rtol=1e-15)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4000, 1)) + rng.standard_normal((4000, 5))
    np.testing.assert_allclose(metrics.intraclass(values), 0.5, atol=0.03)
    assert abs(metrics.intraclass(rng.standard_normal((4000, 5)))) < 0.03
    assert metrics.intraclass(np.repeat(rng.random((5, 1)), 3, 1)) == 1
    assert np.isnan(metrics.intraclass(np.ones((5, 3))))
