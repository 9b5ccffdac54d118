"""A forecast from logs of searches that dropped most seeds: benchmarks/incomplete_logs.py."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.core.looks import estimates

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)
CHECKS = estimates(1, 2, 4)


@pytest.fixture
def logs(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("incomplete_logs")


def chains(prompts, seeds):
    """Scores (P, S, 3) of a known chain: .8 of each check goes into the next. Prompts differ in
    mean and spread."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((prompts, seeds, 3))
    for j in (1, 2):
        z[..., j] = 0.8 * z[..., j - 1] + 0.6 * z[..., j]
    means, spreads = 2 * rng.standard_normal((prompts, 1, 3)), rng.uniform(0.5, 2, (prompts, 1, 1))
    scores = means + spreads * z
    return scores


def pruned(scores, kept):
    """What pruning leaves that finishes the best `kept` of each prompt by the second check."""
    left = scores.copy()
    np.put_along_axis(left[..., 2], np.argsort(-left[..., 1], axis=1)[:, kept:], np.nan, axis=1)
    return list(left)


def test_complete_logs_give_what_calibrate_fits(logs):
    scores = chains(20, 40)
    rewards = np.full((20, 40, 5), np.nan)
    rewards[..., [1, 2, 4]] = scores
    fitted, learned = fit(rewards, LEVELS, CHECKS), logs.learn(list(scores), LEVELS, CHECKS)
    for name in (
        "mean",
        "cov",
        "beta",
        "residual",
        "gamma",
        "spread",
        "spread_range",
        "spread_count",
        "paths",
    ):
        np.testing.assert_allclose(
            getattr(learned, name), getattr(fitted, name), atol=1e-9, err_msg=name
        )


def test_what_was_dropped_does_not_bias_the_fit(logs):
    scores = chains(400, 30)
    every, learned = (
        logs.learn(made, LEVELS, CHECKS) for made in (list(scores), pruned(scores, 6))
    )
    np.testing.assert_allclose(learned.gamma[0, 0], every.gamma[0, 0], atol=0.05)
    np.testing.assert_allclose(learned.beta[2], every.beta[2], atol=0.06)
    np.testing.assert_allclose(learned.mean, every.mean, atol=0.1)


def test_one_search_and_a_prior_give_a_forecast(logs):
    sigma = np.array([[1, 0.8, 0.64], [0.8, 1, 0.8], [0.64, 0.8, 1]])
    prior = logs.Prior(sigma, np.eye(3), 0.3)
    learned = logs.learn(pruned(chains(1, 10), 2), LEVELS, CHECKS, prior)
    np.testing.assert_allclose(learned.gamma[0, 0], 0.64, atol=0.2)
    assert (np.linalg.eigvalsh(learned.cov) > 0).all()
    with pytest.raises(ValueError, match="nothing to learn"):
        logs.learn(pruned(chains(1, 10), 0), LEVELS, CHECKS, prior)
