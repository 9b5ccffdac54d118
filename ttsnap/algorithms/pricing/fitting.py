"""Fits a forecast to recorded trajectories: `ttsnap.simulation.calibrate` calls `fit` and adds
prices."""

from __future__ import annotations

import numpy as np

from ttsnap.algorithms.pricing.forecast import Forecast, rise, written
from ttsnap.core import metrics
from ttsnap.core.arrays import FloatArray
from ttsnap.core.looks import EstimatorAt


def fit(
    rewards: FloatArray,
    levels: tuple[float, ...],
    checks: tuple[EstimatorAt, ...],
    most_paths: int = 2000,
) -> Forecast:
    """The model of trajectories `rewards` (P, S, K+1) at these checks: utilities at their steps,
    each by its look.

    Raises ValueError with too few trajectories, or where a prompt's rewards do not differ at all.
    """
    scores = _at_checks(rewards, len(levels) - 1, checks)
    d = len(checks)
    means = scores.mean(1)
    spreads = scores[..., -1].std(1)
    varied = metrics.varied(scores[..., -1])
    if varied.sum() < 3:
        said = "the finished rewards of nearly every prompt are all equal"
        raise ValueError(f"{said}: there is nothing to search for")
    standardised = (scores - means[:, None])[varied] / spreads[varied, None, None]
    beta, residual, gamma = regressions(standardised)
    spread, spread_range, spread_count = _spread_by_mean(
        means[varied, -1], 2 * np.log(spreads[varied])
    )
    paths = np.einsum("jk,psk->psj", gamma, standardised).reshape(-1, d)
    return Forecast(
        levels=tuple(levels),
        checks=checks,
        mean=means.mean(0),
        cov=np.cov(means.T).reshape(d, d) + 1e-9 * np.eye(d),
        beta=beta,
        residual=residual,
        gamma=gamma,
        spread=spread,
        spread_range=spread_range,
        spread_count=spread_count,
        paths=paths[:: -(-len(paths) // most_paths)],
        prices=np.empty((0, 2)),
    )


def _at_checks(rewards: FloatArray, last: int, checks: tuple[EstimatorAt, ...]) -> FloatArray:
    """The rewards (P, S, d) at the checks, once both can be used; ValueError where they cannot."""
    if not rise(checks, last):
        raise ValueError(
            f"checks must rise and end at the last grid step {last}, got {written(checks)}"
        )
    scores = rewards[:, :, [check.step for check in checks]]
    prompts, seeds, _ = scores.shape
    if prompts < 3 or seeds < 5:
        raise ValueError(
            f"need at least 3 prompts of 5 seeds to calibrate, got {prompts} of {seeds}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"scores at the checks {written(checks)} hold nan; record these steps, without failed"
            " rewards"
        )
    return scores


def regressions(standardised: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """beta (d, d), residual (d,) and gamma (d, d) of `Forecast`, from standardised scores (P, S,
    d)."""
    prompts, seeds, d = standardised.shape
    sigma = np.einsum("psi,psj->ij", standardised, standardised) / (prompts * (seeds - 1))
    # so that scores that repeat each other can be solved for
    sigma[np.arange(d - 1), np.arange(d - 1)] *= 1 + 1e-3
    beta = np.zeros((d, d))
    gamma = np.zeros((d, d))
    residual = np.empty(d)
    for j in range(d):
        known = slice(j)
        with_this = slice(j + 1)
        beta[j, known] = np.linalg.solve(sigma[known, known], sigma[known, j])
        residual[j] = max(sigma[j, j] - beta[j, known] @ sigma[known, j], 1e-9)
        gamma[j, with_this] = np.linalg.solve(sigma[with_this, with_this], sigma[with_this, -1])
    return beta, residual, gamma


def _spread_by_mean(
    means: FloatArray, log: FloatArray
) -> tuple[FloatArray, tuple[float, float], float]:
    """`spread`, `spread_range` and `spread_count` of `Forecast`, from prompts' mean rewards and log
    s^2, (P,) each.

    Fewer than 50 prompts do not tell how the spread hangs on the mean; the spread is then a
    constant.
    """
    degree = 2 if len(means) >= 50 else 0
    coefficients = np.polynomial.polynomial.polyfit(means, log, degree)
    error = log - np.polynomial.polynomial.polyval(means, coefficients)
    return (
        np.pad(coefficients, (0, 2 - degree)),
        (float(np.quantile(log, 0.03)), float(np.quantile(log, 0.97))),
        float(np.clip(2 / max(error.var(), 1e-9), 2, 50)),
    )
