"""Fits a forecast to logs of searches, which dropped most seeds before they were finished.

A log has the scores of each seed up to the check at which it was dropped. What is missing depends
on scores that are there alone ("missing at random"; Little and Rubin, "Statistical Analysis with
Missing Data"). So a regression of each check on those before it, within prompts and over the seeds
that reached it, is not biased by what was dropped. The chain of these regressions gives the whole
covariance. From complete logs it is that of `fitting.fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ttsnap.algorithms.pricing.forecast import Forecast
from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.looks import EstimatorAt

RIDGE = 1e-3
"""As `fitting.regressions` adds to the variances of early scores."""
_ROUNDS = 50
"""Of spreads and regressions, each given the other."""


@dataclass(frozen=True)
class Prior:
    """What is believed of a model before its first search, in units of a prompt's spread."""

    sigma: FloatArray
    """(d, d) covariance of a prompt's scores at the checks; the last variance is 1."""
    between: FloatArray
    """(d, d) covariance of the prompts' means."""
    spread: float
    """Variance of log s^2 between prompts."""
    seeds: float = 20.0
    """Seeds that `sigma` is worth."""
    prompts: float = 3.0
    """Prompts that `between` and `spread` are worth."""
    scores: float = 6.0
    """Seeds that the spread of all prompts is worth in a prompt's own."""


class Logs(NamedTuple):
    """Scores of N seeds of P prompts."""

    x: FloatArray
    """(N, d) at the checks, 0 from where a seed was dropped."""
    reached: IntArray
    """(N,) checks that each has scores of: 1..d."""
    prompt: IntArray
    """(N,) 0..P-1."""

    @classmethod
    def of(cls, logs: Sequence[FloatArray]) -> Logs:
        """logs: (n, d) of each prompt, nan where there is no score. What follows the first nan is
        not used."""
        x, prompt = (
            np.concatenate(logs),
            np.repeat(np.arange(len(logs)), [len(log) for log in logs]),
        )
        reached = (np.cumsum(np.isnan(x), 1) == 0).sum(1)
        some = reached > 0
        x = np.where(np.arange(x.shape[1]) < reached[:, None], x, 0.0)
        return cls(x[some], reached[some], prompt[some])

    def total(self, values: FloatArray, there: FloatArray) -> FloatArray:
        """(P, ...) sums of values (N, ...) over the seeds that are there (N,) 0 or 1."""
        sums = np.zeros((int(self.prompt[-1]) + 1, *values.shape[1:]))
        np.add.at(sums, self.prompt, (values.T * there).T)
        return sums


def learn(
    logs: Sequence[FloatArray],
    levels: tuple[float, ...],
    checks: tuple[EstimatorAt, ...],
    prior: Prior | None = None,
    most_paths: int = 2000,
) -> Forecast:
    """The forecast after searches of P prompts; logs: (n, d) scores at the checks of each, as
    `Logs.of` takes them.

    Prompts whose seeds do not differ at the first check, or of which none was finished, tell
    nothing. ValueError where there is no other.
    """
    c = complete(logs, prior)
    means, log = c.means * c.spread[:, None], 2 * np.log(c.spread)
    spread, span, count = _spreads(means[:, -1], log, prior)
    paths = c.z @ c.gamma.T
    return Forecast(
        levels=tuple(levels),
        checks=checks,
        mean=means.mean(0),
        cov=_between(means, float(np.exp(log.mean())), prior) + 1e-9 * np.eye(len(checks)),
        beta=c.beta,
        residual=c.residual,
        gamma=c.gamma,
        spread=spread,
        spread_range=span,
        spread_count=count,
        paths=paths[:: -(-len(paths) // most_paths)],
        prices=np.empty((0, 2)),
    )


class Completed(NamedTuple):
    """What logs say of P prompts; scores are in units of each prompt's spread."""

    beta: FloatArray
    """(d, d) of `Forecast`, as residual (d,) and gamma (d, d)."""
    residual: FloatArray
    gamma: FloatArray
    means: FloatArray
    """(P, d) of the prompts."""
    spread: FloatArray
    """(P,) s."""
    z: FloatArray
    """(N, d) scores of the seeds less their prompts' means. What was dropped is drawn from the
    regressions; with a prior there are 200 more seeds, wholly drawn."""


def complete(logs: Sequence[FloatArray], prior: Prior | None = None) -> Completed:
    """The chain of regressions of these logs, and the spreads of prompts, each given the other,
    until both stay."""
    told = [log for log in logs if _tells(log)]
    if not told:
        raise ValueError(
            "no search has finished seeds that differ in reward: there is nothing to learn from yet"
        )
    data = Logs.of(told)
    seeds = np.bincount(data.prompt)
    spread = np.ones(len(told))
    for _ in range(_ROUNDS):
        z = data._replace(x=data.x / spread[data.prompt, None])
        beta, residual, means = _chain(z, prior)
        gamma, sigma = _forecasts(beta, residual)
        rest = sigma[-1, -1] - gamma @ sigma[:, -1]
        ahead = ((z.x - means[data.prompt]) * gamma[data.reached - 1]).sum(1) ** 2 + rest[
            data.reached - 1
        ]
        found = np.bincount(data.prompt, ahead) / seeds * spread**2
        if prior is not None:
            found = (prior.scores * np.exp(np.log(found).mean()) + seeds * found) / (
                prior.scores + seeds
            )
        before, spread = spread, np.sqrt(found)
        if np.allclose(before, spread, rtol=1e-12):
            break
    return Completed(beta, residual, gamma, means, spread, _drawn(z, means, beta, residual, prior))


def _tells(log: FloatArray) -> bool:
    """Whether seeds differ at the first check, and one was finished."""
    first, finished = log[np.isfinite(log[:, 0]), 0], np.isfinite(log).all(1)
    return len(first) > 1 and bool(np.ptp(first) > 0 and finished.any())


def _chain(z: Logs, prior: Prior | None) -> tuple[FloatArray, FloatArray, FloatArray]:
    """beta (d, d) and residual (d,) of `Forecast`, and the prompts' means (P, d), all of
    standardised scores."""
    d = z.x.shape[1]
    beta, residual, means = np.zeros((d, d)), np.empty(d), np.zeros((int(z.prompt[-1]) + 1, d))
    for j in range(d):
        there = (z.reached > j).astype(float)
        count = z.total(there, there)
        mean = z.total(z.x[:, : j + 1], there) / np.maximum(count, 1)[:, None]
        centred = (z.x[:, : j + 1] - mean[z.prompt]) * there[:, None]
        products, freedom = centred.T @ centred, float(np.maximum(count - 1, 0).sum())
        if prior is not None:
            products, freedom = (
                products + prior.seeds * prior.sigma[: j + 1, : j + 1],
                freedom + prior.seeds,
            )
        sigma = products / max(freedom, 1.0)
        early = np.arange(min(j + 1, d - 1))
        sigma[early, early] *= 1 + RIDGE
        beta[j, :j] = np.linalg.solve(sigma[:j, :j], sigma[:j, j])
        residual[j] = max(sigma[j, j] - beta[j, :j] @ sigma[:j, j], 1e-9)
        level = mean[:, j] - mean[:, :j] @ beta[j, :j]
        level = np.where(count > 0, level, level[count > 0].mean() if (count > 0).any() else 0.0)
        means[:, j] = level + means[:, :j] @ beta[j, :j]
    return beta, residual, means


def _forecasts(beta: FloatArray, residual: FloatArray) -> tuple[FloatArray, FloatArray]:
    """gamma (d, d) of `Forecast`, and the covariance (d, d) that these regressions describe."""
    d = len(residual)
    sigma, gamma = np.diag(residual), np.zeros((d, d))
    for j in range(d):
        sigma[j, :j] = sigma[:j, j] = sigma[:j, :j] @ beta[j, :j]
        sigma[j, j] = residual[j] + beta[j, :j] @ sigma[:j, j]
    for j in range(1, d + 1):
        gamma[j - 1, :j] = np.linalg.solve(sigma[:j, :j], sigma[:j, -1])
    return gamma, sigma


def _between(means: FloatArray, variance: float, prior: Prior | None) -> FloatArray:
    """`cov` of `Forecast`, from the prompts' means (P, d); variance: the s^2 of a usual prompt."""
    n = len(means)
    scatter = (means - means.mean(0)).T @ (means - means.mean(0))
    if prior is None:
        return np.asarray(scatter / (n - 1))
    cov = (scatter + prior.prompts * variance * prior.between) / (n - 1 + prior.prompts)
    return np.asarray((1 + 1 / n) * cov)  # the mean is an estimate itself


def _spreads(
    means: FloatArray, log: FloatArray, prior: Prior | None
) -> tuple[FloatArray, tuple[float, float], float]:
    """`spread`, `spread_range` and `spread_count` of `Forecast`, from the prompts' mean rewards and
    log s^2, (P,)."""
    degree, n = (2 if len(log) >= 50 else 0), len(log)
    found = np.polynomial.polynomial.polyfit(means, log, degree)
    variance = float((log - np.polynomial.polynomial.polyval(means, found)).var())
    low, high = float(np.quantile(log, 0.03)), float(np.quantile(log, 0.97))
    if prior is not None:
        variance = (n * variance + prior.prompts * prior.spread) / (n + prior.prompts)
        if n < 50:  # what the few prompts so far did not show
            reach = 2 * float(np.sqrt(variance))
            low, high = min(low, log.mean() - reach), max(high, log.mean() + reach)
    return (
        np.pad(found, (0, 2 - degree)),
        (low, high),
        float(np.clip(2 / max(variance, 1e-9), 2, 50)),
    )


def _drawn(
    z: Logs, means: FloatArray, beta: FloatArray, residual: FloatArray, prior: Prior | None
) -> FloatArray:
    """`Completed.z`."""
    rng, d = np.random.default_rng(0), len(residual)
    there = np.arange(d) < z.reached[:, None]
    x = np.where(there, z.x - means[z.prompt], 0.0)
    if prior is not None:
        x, there = np.vstack([x, np.zeros((200, d))]), np.vstack([there, np.zeros((200, d), bool)])
    for j in range(d):
        drawn = x @ beta[j] + np.sqrt(residual[j]) * rng.standard_normal(len(x))
        x[:, j] = np.where(there[:, j], x[:, j], drawn)
    return x
