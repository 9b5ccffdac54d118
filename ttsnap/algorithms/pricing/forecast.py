"""How early scores forecast the finished reward.

A Gaussian model of the scores x = (x_1 .. x_d) that one seed gets at d checks, the last being the finished reward:
x = m + s z, with m the prompt's mean, s its spread, z ~ N(0, Sigma). m and s differ from prompt to prompt and are
learned while searching: `update` is one exact Bayesian step. `fitting.fit` takes the parameters from recorded
trajectories; `reservation.py` says what a candidate is worth under them, at a price of compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Grid
from ttsnap.files.typed import Json

MOST_PATHS = 100_000
"""Trajectories that a file may hold: what is tabulated from them takes time in their number."""


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

    def to_json(self) -> dict[str, Json]:
        """JSON-ready; `from_json` reads it back. Paths keep three decimals."""
        arrays = {k: np.asarray(v, float).tolist() for k, v in vars(self).items() if k not in ("checks", "paths")}
        return {**arrays, "checks": list(self.checks), "paths": self.paths.round(3).tolist()}

    @classmethod
    def from_json(cls, found: Mapping[str, Json]) -> Forecast:
        """Of what `to_json` gave. ValueError where a field is missing, unknown, of another shape, not finite or beyond
        what a forecast can be."""
        arrays = _arrays({f.name for f in dataclasses.fields(cls)}, found)
        Grid(tuple(arrays["levels"].tolist()))  # refuses levels that are none
        broken = [rule for rule, kept in _rules(arrays).items() if not kept]
        if broken:
            raise ValueError(f"the forecast is damaged: {'; '.join(broken)}")
        low, high = arrays["spread_range"].tolist()
        return cls(
            levels=tuple(arrays["levels"].tolist()),
            checks=tuple(arrays["checks"].astype(int).tolist()),
            mean=arrays["mean"],
            cov=arrays["cov"],
            beta=arrays["beta"],
            residual=arrays["residual"],
            gamma=arrays["gamma"],
            spread=arrays["spread"],
            spread_range=(low, high),
            spread_count=float(arrays["spread_count"]),
            paths=arrays["paths"],
            prices=arrays["prices"],
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


# --- what a file must hold ----------------------------------------------------------------------------------------


def _arrays(names: set[str], found: Mapping[str, Json]) -> dict[str, FloatArray]:
    """Every field of a file as numbers, each of its shape. ValueError for the first one that is not."""
    if names != set(found):
        odd = f"it lacks {sorted(names - set(found))}" if names - set(found) else f"{sorted(set(found) - names)}"
        raise ValueError(f"not a forecast written by `ttsnap calibrate`: {odd[:200]}")
    arrays = {name: _numbers(name, value) for name, value in found.items()}
    points, d = arrays["levels"].size, arrays["checks"].size
    arrays["paths"], arrays["prices"] = _rows(arrays["paths"], d), _rows(arrays["prices"], 2)
    shapes: dict[str, tuple[int, ...]] = {
        "levels": (points,),
        **dict.fromkeys(("checks", "mean", "residual"), (d,)),
        **dict.fromkeys(("cov", "beta", "gamma"), (d, d)),
        "spread": (3,),
        "spread_range": (2,),
        "spread_count": (),
        "paths": (len(arrays["paths"]), d),
        "prices": (len(arrays["prices"]), 2),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"the forecast's {name} must have shape {shape}, got {arrays[name].shape}")
    return arrays


def _rules(arrays: Mapping[str, FloatArray]) -> dict[str, bool]:
    """What must hold of the fields' values, in words, and whether it does."""
    checks, cov, prices = (arrays[name] for name in ("checks", "cov", "prices"))
    last = arrays["levels"].size - 1
    rising = checks.size > 0 and bool((checks == checks.round()).all() and (np.diff(checks, prepend=-1) > 0).all())
    tolerance = 1e-9 * max(1.0, float(abs(cov).max()))
    return {
        f"checks must be whole numbers that rise from 0 on and end at {last}": rising and bool(checks[-1] == last),
        "residual and spread_count must be positive": bool(
            (arrays["residual"] > 0).all() and arrays["spread_count"] > 0
        ),
        "spread_range must rise": bool(np.diff(arrays["spread_range"]) >= 0),
        "cov must be a covariance": np.allclose(cov, cov.T) and bool((np.linalg.eigvalsh(cov) >= -tolerance).all()),
        f"paths must be 1 to {MOST_PATHS:,} rows": 1 <= len(arrays["paths"]) <= MOST_PATHS,
        "prices must be pairs of positive numbers, the first rising": bool(
            (prices > 0).all() and (np.diff(prices[:, 0]) > 0).all()
        ),
    }


def _numbers(name: str, value: Json) -> FloatArray:
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
