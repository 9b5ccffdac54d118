"""How early scores forecast the finished reward, and what a candidate is worth at a price of compute.

A Gaussian model of the scores x = (x_1 .. x_d) that one seed gets at d checks, the last being the finished reward:
x = m + s z, with m the prompt's mean, s its spread, z ~ N(0, Sigma). m and s differ from prompt to prompt and are
learned while searching. `fit` takes it from recorded trajectories; `update` is one exact Bayesian step.

A candidate's worth is a reservation value (Weitzman 1979, "Optimal Search for the Best Alternative"; Gittins 1979):
the sure reward at which one would be indifferent between taking it and going on with the candidate, paying for each
further check. `reservation` tabulates it by backward induction over the forecasts seen in the recorded trajectories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ttsnap.core import metrics
from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Grid

STATES = np.linspace(-4.5, 4.5, 91)
"""Standardised forecasts (mu - m_R) / s on which reservation values are tabulated."""
PRICES = np.geomspace(3e-5, 2e-1, 32)
"""Prices per evaluation over s, on which they are tabulated."""
_RATIO = float(np.log(PRICES[1] / PRICES[0]))
_BANDWIDTH, _PSEUDO_COUNT = 0.35, 30.0


@dataclass(frozen=True, eq=False)
class Forecast:
    """Parameters of the model at d checks.

    checks (d,) grid steps, the last the grid's end; mean (d,), cov (d, d) of the prompts' means; beta (d, d) rows
    regress z_j on z_<j with residual variance residual (d,); gamma (d, d) rows regress z_d on z_<=j. spread (3,)
    coefficients of log s^2 as a quadratic in the prompt's mean reward, clipped to spread_range, worth spread_count
    observations. paths (n, d) standardised forecasts along recorded trajectories. prices maps allowances (in
    evaluations) to the price at which a shared search spends them on average: (b, 2), or empty.
    """

    levels: tuple[float, ...]
    checks: tuple[int, ...]
    mean: FloatArray
    cov: FloatArray
    beta: FloatArray
    residual: FloatArray
    gamma: FloatArray
    spread: FloatArray
    spread_range: tuple[float, float]
    spread_count: float
    paths: FloatArray
    prices: FloatArray

    def prior_variance(self, mean_reward: FloatArray) -> FloatArray:
        """s^2 of a prompt before its scores are seen, given its mean reward (...,)."""
        c = self.spread
        log = c[0] + c[1] * mean_reward + c[2] * mean_reward**2
        return np.asarray(np.exp(np.clip(log, *self.spread_range)))

    def price_for(self, allowance: float) -> float:
        """The price at which a shared search spends `allowance` evaluations a prompt, by the calibration."""
        known = np.asarray(self.prices)
        if not len(known):
            raise ValueError("this forecast was fitted without prices for shared budgets; run `ttsnap calibrate`")
        return float(np.exp(np.interp(np.log(allowance), np.log(known[:, 0]), np.log(known[:, 1]))))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` reads it back. Paths keep three decimals."""
        found = {k: np.asarray(v, float).tolist() for k, v in vars(self).items() if k not in ("checks", "paths")}
        return {**found, "checks": list(self.checks), "paths": self.paths.round(3).tolist()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Forecast:
        """Of what `to_json` gave. ValueError where a field is missing, unknown, of another shape, not finite or beyond
        what a forecast can be."""
        names = {f.name for f in dataclasses.fields(cls)}
        if names != set(found):
            odd = f"it lacks {sorted(names - set(found))}" if names - set(found) else f"{sorted(set(found) - names)}"
            raise ValueError(f"not a forecast written by `ttsnap calibrate`: {odd[:200]}")
        arrays = {name: _numbers(name, value) for name, value in found.items()}
        k, d = arrays["levels"].size - 1, arrays["checks"].size
        arrays["paths"], arrays["prices"] = (_rows(arrays[n], wide) for n, wide in (("paths", d), ("prices", 2)))
        shapes = {"levels": (k + 1,), "checks": (d,), "mean": (d,), "residual": (d,), "spread": (3,),
                  "spread_range": (2,), "spread_count": (), "paths": (len(arrays["paths"]), d),
                  "prices": (len(arrays["prices"]), 2), **dict.fromkeys(("cov", "beta", "gamma"), (d, d))}  # fmt: skip
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"the forecast's {name} must have shape {shape}, got {arrays[name].shape}")
        levels, checks, cov, prices = (arrays[name] for name in ("levels", "checks", "cov", "prices"))
        Grid(tuple(levels.tolist()))
        rules = {
            f"checks must be whole numbers that rise from 0 on and end at {k}":
                d > 0 and bool((checks == checks.round()).all() and (np.diff(checks, prepend=-1) > 0).all())
                and checks[-1] == k,
            "residual and spread_count must be positive": bool((arrays["residual"] > 0).all())
                and bool(arrays["spread_count"] > 0),
            "spread_range must rise": bool(np.diff(arrays["spread_range"]) >= 0),
            "cov must be a covariance": np.allclose(cov, cov.T)
                and bool((np.linalg.eigvalsh(cov) >= -1e-9 * max(1.0, float(abs(cov).max()))).all()),
            "paths must be 1 to 100,000 rows": 1 <= len(arrays["paths"]) <= 100_000,
            "prices must be pairs of positive numbers, the first rising":
                bool((prices > 0).all() and (np.diff(prices[:, 0]) > 0).all()),
        }  # fmt: skip
        broken = [rule for rule, kept in rules.items() if not kept]
        if broken:
            raise ValueError(f"the forecast is damaged: {'; '.join(broken)}")
        plain = {"levels": tuple(levels.tolist()), "checks": tuple(checks.astype(int).tolist()),
                 "spread_range": tuple(arrays["spread_range"].tolist()),
                 "spread_count": float(arrays["spread_count"])}  # fmt: skip
        return cls(**{**arrays, **plain})  # type: ignore[arg-type]


def _numbers(name: str, value: Any) -> FloatArray:
    """An array of a field of a file. ValueError unless it is a regular list of numbers that can be squared."""
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.size and array.dtype.kind not in "if":
        raise ValueError(f"the forecast's {name} must be numbers in lists of one length, got {str(value)[:60]}")
    if not (abs(array.astype(float)) <= 1e30).all():
        raise ValueError(f"the forecast's {name} must be finite numbers, got {str(value)[:60]}")
    return array.astype(float)


def _rows(array: FloatArray, wide: int) -> FloatArray:
    """An empty list as no rows of this width."""
    return array.reshape(0, wide) if array.shape == (0,) else array


def fit(rewards: FloatArray, levels: tuple[float, ...], checks: tuple[int, ...], most_paths: int = 2000) -> Forecast:
    """The model of trajectories `rewards` (P, S, K+1), utilities at every grid point, at these checks.

    Raises ValueError with too few trajectories, or where a prompt's rewards do not differ at all.
    """
    if not checks or checks[-1] != len(levels) - 1 or list(checks) != sorted(set(checks)) or checks[0] < 0:
        raise ValueError(f"checks must rise and end at the last grid step {len(levels) - 1}, got {checks}")
    x = rewards[:, :, list(checks)]
    p, s, d = x.shape
    if p < 3 or s < 5:
        raise ValueError(f"need at least 3 prompts of 5 seeds to calibrate, got {p} of {s}")
    if not np.isfinite(x).all():
        raise ValueError(f"scores at the checks {checks} hold nan; record these steps, without failed rewards")
    means = x.mean(1)
    sd = x[..., -1].std(1)
    varied = metrics.varied(x[..., -1])
    if varied.sum() < 3:
        raise ValueError("the finished rewards of nearly every prompt are all equal: there is nothing to search for")
    z = (x - means[:, None])[varied] / sd[varied, None, None]
    sigma = np.einsum("psi,psj->ij", z, z) / (varied.sum() * (s - 1))
    sigma[np.arange(d - 1), np.arange(d - 1)] *= 1 + 1e-3
    beta, gamma, residual = np.zeros((d, d)), np.zeros((d, d)), np.empty(d)
    for j in range(d):
        beta[j, :j] = np.linalg.solve(sigma[:j, :j], sigma[:j, j])
        residual[j] = max(sigma[j, j] - beta[j, :j] @ sigma[:j, j], 1e-9)
        gamma[j, : j + 1] = np.linalg.solve(sigma[: j + 1, : j + 1], sigma[: j + 1, -1])
    log = 2 * np.log(sd[varied])
    degree = 2 if varied.sum() >= 50 else 0
    c = np.polynomial.polynomial.polyfit(means[varied, -1], log, degree)
    error = log - np.polynomial.polynomial.polyval(means[varied, -1], c)
    paths = np.einsum("jk,psk->psj", gamma, z).reshape(-1, d)
    return Forecast(
        levels=tuple(levels),
        checks=tuple(int(k) for k in checks),
        mean=means.mean(0),
        cov=np.cov(means.T).reshape(d, d) + 1e-9 * np.eye(d),
        beta=beta,
        residual=residual,
        gamma=gamma,
        spread=np.pad(c, (0, 2 - degree)),
        spread_range=(float(np.quantile(log, 0.03)), float(np.quantile(log, 0.97))),
        spread_count=float(np.clip(2 / max(error.var(), 1e-9), 2, 50)),
        paths=paths[:: -(-len(paths) // most_paths)],
        prices=np.empty((0, 2)),
    )


def update(
    f: Forecast, x: FloatArray, j: IntArray, mean: FloatArray, cov: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Posterior of the prompt's mean after score x_j of one candidate, given its earlier ones.

    x (..., d) with zeros beyond j, j (...,), mean (..., d), cov (..., d, d), variance (...,) the present s^2.
    Returns mean, cov and the squared innovation in units of s^2 (one more observation of s^2).
    """
    h = np.eye(len(f.checks))[j] - f.beta[j]
    y = ((x - mean) * h).sum(-1)
    ph = (cov @ h[..., None])[..., 0]
    total = (h * ph).sum(-1) + f.residual[j] * variance
    gain = ph / total[..., None]
    return mean + gain * y[..., None], cov - gain[..., None] * ph[..., None, :], y**2 / total * variance


@lru_cache(maxsize=16)
def reservation(f: Forecast, costs: tuple[float, ...]) -> FloatArray:
    """Reservation values (len(PRICES), d + 1, len(STATES)), standardised.

    Entry j < d is for a candidate with j checks paid, whose next costs costs[j] evaluations (j = 0, a fresh seed, does
    not depend on the state); entry d is a finished one's value itself.
    """
    z, d = STATES, len(f.checks)
    moves = [_transitions(f.paths[:, j], f.paths[:, j + 1], _BANDWIDTH) for j in range(d - 1)]
    first = _transitions(np.zeros(len(f.paths)), f.paths[:, 0], 10.0)[len(z) // 2]
    table = np.empty((len(PRICES), d + 1, len(z)))
    table[:, d] = z
    for i, price in enumerate(PRICES):
        worth = np.maximum(z[:, None], z)  # of state e when z is sure
        for j in range(d - 1, -1, -1):
            # A fresh seed has no state: one row for all, which BLAS might round differently row by row.
            go = (moves[j - 1] @ worth if j else np.tile(first @ worth, (len(z), 1))) - price * costs[j]
            table[i, j] = _indifferent(go - z)
            worth = np.maximum(go, z)
    return table


def _transitions(a: FloatArray, b: FloatArray, bandwidth: float) -> FloatArray:
    """How forecasts move from one check to the next, (len(STATES), len(STATES)), rows summing to one.

    Observed increments b - a, smoothed over a, mixed with the increments of all trajectories as pseudo-counts.
    """
    n, step = len(STATES), STATES[1] - STATES[0]
    ia, ib = (np.clip((v - STATES[0]) / step, 0, n - 1.001) for v in (a, b))
    counts = np.zeros((n, n))
    for da in (0, 1):
        for db in (0, 1):
            weight = np.abs(1 - da - ia % 1) * np.abs(1 - db - ib % 1)
            np.add.at(counts, (ia.astype(int) + da, ib.astype(int) + db), weight)
    row, column = np.indices((n, n))
    increments = np.zeros((n, 2 * n - 1))
    increments[row, column - row + n - 1] = counts
    everywhere = increments.sum(0) / increments.sum()
    near = np.exp(-0.5 * ((STATES[:, None] - STATES) / bandwidth) ** 2) @ increments
    near = (near + _PSEUDO_COUNT * everywhere) / (near.sum(1, keepdims=True) + _PSEUDO_COUNT)
    result = np.zeros((n, n))
    row, shift = np.indices(near.shape)
    np.add.at(result, (row, np.clip(row + shift - (n - 1), 0, n - 1)), near)
    return result


def _indifferent(gap: FloatArray) -> FloatArray:
    """For each row of gap (n, n), which falls along z, the z at which it is zero."""
    z, last = STATES, len(STATES) - 1
    positive = (gap > 0).sum(1)
    q = np.clip(positive - 1, 0, last - 1)
    here, there = np.take_along_axis(gap, np.stack([q, q + 1], 1), 1).T
    inside = z[q] + (z[1] - z[0]) * here / np.where(here > there, here - there, 1.0)
    found: FloatArray = np.where(positive == 0, z[0] + gap[:, 0], np.where(positive > last, z[last], inside))
    return found


def look_up(table: FloatArray, price: FloatArray, j: IntArray, state: FloatArray) -> FloatArray:
    """Reservation values at prices per evaluation over s, stages and standardised forecasts, all broadcast together.

    Linear between the tabulated points and, beyond the states, by shifting (a forecast higher by 1 is worth 1 more).
    """
    t = np.log(np.maximum(price, 1e-30) / PRICES[0]) / _RATIO
    t = np.clip(t, 0, len(PRICES) - 1.001)
    i = t.astype(int)
    at, beyond = _along_prices(table, j, state)
    f = t - i
    return np.asarray((1 - f) * at(i) + f * at(i + 1) + beyond)


def break_even(table: FloatArray, j: IntArray, state: FloatArray, value: FloatArray) -> FloatArray:
    """The price per evaluation over s up to which reservation values exceed `value`: the inverse of `look_up`.

    0 where they do at no price, inf where they do at every tabulated one.
    """
    at, beyond = _along_prices(table, j, state)
    value = value - beyond
    low, high = np.zeros(np.shape(beyond), int), np.full(np.shape(beyond), len(PRICES) - 1)
    for _ in range(len(PRICES).bit_length() - 1):  # the last tabulated price at which they do
        middle = (low + high + 1) // 2
        exceeds = at(middle) > value
        low, high = np.where(exceeds, middle, low), np.where(exceeds, high, middle - 1)
    last = low == len(PRICES) - 1
    here, there = at(low), at(low + ~last)
    t = low + np.clip((here - value) / np.where(here > there, here - there, 1.0), 0, 1)
    return np.where(here <= value, 0.0, np.where(last, np.inf, PRICES[0] * np.exp(_RATIO * t)))


def _along_prices(
    table: FloatArray, j: IntArray, state: FloatArray
) -> tuple[Callable[[IntArray], FloatArray], FloatArray]:
    """Values at tabulated price i, less a part that is the same at all prices: both at stages and states (...,)."""
    inside = np.clip(state, STATES[0], STATES[-1])
    u = np.minimum((inside - STATES[0]) / (STATES[1] - STATES[0]), len(STATES) - 1.001)
    q = u.astype(int)
    g = u - q
    flat, size = table.reshape(-1), table.shape[1] * table.shape[2]
    first = np.asarray(j) * table.shape[2] + q

    def at(i: IntArray) -> FloatArray:
        k = i * size + first
        return np.asarray((1 - g) * flat.take(k) + g * flat.take(k + 1))

    return at, np.where(np.asarray(j) > 0, state - inside, 0.0)
