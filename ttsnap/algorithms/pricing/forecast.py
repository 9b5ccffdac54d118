"""How early scores forecast the finished reward.

A Gaussian model of the scores x = (x_1 .. x_d) that one seed gets at d checks, the last being the
finished reward. A check is a look at a grid step: the x0 estimate there or, before the first of
them, a draft of the initial noise. x = m + s z, with m the prompt's mean, s its spread, z ~ N(0,
Sigma). m and s differ from prompt to prompt and are learned while searching: `update` is one exact
Bayesian step. `fitting.fit` takes the parameters from recorded trajectories; `reservation.py` says
what a candidate is worth under them, at a price of compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.looks import ESTIMATE, Estimator, EstimatorAt, estimates, read_look
from ttsnap.files.settings import Json

MOST_PATHS = 100_000
"""Trajectories that a file may hold: what is tabulated from them takes time in their number."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """Parameters of the model at d checks."""

    levels: tuple[float, ...]
    """(K+1,) noise levels of the grid."""
    checks: tuple[EstimatorAt, ...]
    """(d,) looks at steps that rise, the last the finished image."""
    mean: FloatArray
    """(d,) of the prompts' means."""
    cov: FloatArray
    """(d, d) of the prompts' means."""
    beta: FloatArray
    """(d, d) rows regress z_j on z_<j."""
    residual: FloatArray
    """(d,) variances of that."""
    gamma: FloatArray
    """(d, d) rows regress z_d on z_<=j."""
    spread: FloatArray
    """(3,) coefficients of log s^2 as a quadratic in the prompt's mean reward."""
    spread_range: tuple[float, float]
    """What log s^2 is clipped to."""
    spread_count: float
    """Observations that `spread` is worth."""
    paths: FloatArray
    """(n, d) standardised forecasts along recorded trajectories."""
    prices: FloatArray
    """(b, 2) allowances in evaluations, and the price at which a shared search spends each on
    average; or empty."""

    @classmethod
    def __get_pydantic_core_schema__(cls, kind: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.union_schema(
            [core_schema.is_instance_schema(cls), core_schema.dict_schema()]
        )

    @property
    def steps(self) -> IntArray:
        """(d,) grid steps of the checks."""
        return np.array([check.step for check in self.checks])

    @property
    def looks(self) -> Mapping[int, Estimator]:
        """{step: look} of the checks that look at something else than the x0 estimate."""
        return {
            check.step: read_look(check.look)
            for check in self.checks
            if check.look != ESTIMATE.name
        }

    def prior_variance(self, mean_reward: FloatArray) -> FloatArray:
        """s^2 of a prompt before its scores are seen, given its mean reward (...,)."""
        c = self.spread
        log = c[0] + c[1] * mean_reward + c[2] * mean_reward**2
        return np.asarray(np.exp(np.clip(log, *self.spread_range)))

    def price_for(self, allowance: float) -> float:
        """The price at which a shared search spends `allowance` evaluations a prompt, by the
        calibration."""
        known = np.asarray(self.prices)
        if not len(known):
            raise ValueError(
                "this forecast was fitted without prices for shared budgets; run `ttsnap tune --policy"
                " price-of-compute`"
            )
        return float(np.exp(np.interp(np.log(allowance), np.log(known[:, 0]), np.log(known[:, 1]))))

    @property
    def explained(self) -> FloatArray:
        """The share of the variance of the finished reward, within a prompt, that the scores up to
        each check explain."""
        left: FloatArray = np.var(self.paths[:, -1:] - self.paths[:, : len(self.checks)], axis=0)
        return 1 - left

    def to_json(self) -> dict[str, Json]:
        """JSON-ready; `from_json` reads it back. A check of the x0 estimate is written as its step,
        another one like "draft:1@0". Paths keep three decimals."""
        arrays = {
            k: np.asarray(v, float).tolist()
            for k, v in vars(self).items()
            if k not in ("checks", "paths")
        }
        return {**arrays, "checks": written(self.checks), "paths": self.paths.round(3).tolist()}

    @classmethod
    def from_json(cls, found: Mapping[str, Json]) -> Forecast:
        """Of what `to_json` gave. ValueError where a field is missing, unknown, of another shape,
        not finite or beyond what a forecast can be."""
        if odd := {f.name for f in dataclasses.fields(cls)} ^ set(found):
            whose = "it lacks " if odd - set(found) else ""
            raise ValueError(
                f"not a forecast written by `ttsnap tune --policy price-of-compute`: {whose}{sorted(odd)}"[
                    :260
                ]
            )
        checks = read_checks(found["checks"])
        arrays = _arrays({**found, "checks": [check.step for check in checks]})
        Grid(tuple(arrays["levels"].tolist()))  # refuses levels that are none
        broken = [rule for rule, kept in _rules(arrays, checks).items() if not kept]
        if broken:
            raise ValueError(f"the forecast is damaged: {'; '.join(broken)}")
        levels, spread_range = (tuple(arrays[name].tolist()) for name in ("levels", "spread_range"))
        fields: dict[str, Any] = {
            **arrays,
            "levels": levels,
            "checks": checks,
            "spread_range": spread_range,
        }
        return cls(**{**fields, "spread_count": float(arrays["spread_count"])})


def read_checks(entries: Json) -> tuple[EstimatorAt, ...]:
    """Checks as people and files write them: a step, for the x0 estimate there, or a look and its
    step as "draft:1@0".

    ValueError for another value.
    """
    checks: list[EstimatorAt] = []
    for entry in entries if isinstance(entries, list | tuple) else [entries]:
        if isinstance(entry, bool) or not isinstance(entry, int | str):
            raise ValueError(
                f"checks must be grid steps, or looks at one as draft:1@0, got {str(entry)[:60]}"
            )
        checks += [EstimatorAt.read(entry)] if isinstance(entry, str) else estimates(entry)
    return tuple(checks)


def written(checks: Sequence[EstimatorAt]) -> list[int | str]:
    """What `read_checks` reads."""
    return [check.step if check.look == ESTIMATE.name else str(check) for check in checks]


def rise(checks: Sequence[EstimatorAt], last: int) -> bool:
    """Whether their steps do, from 0 on, and the last of them is the finished image at step
    `last`."""
    steps = [-1, *(check.step for check in checks)]
    return all(a < b for a, b in pairwise(steps)) and tuple(checks[-1:]) == estimates(last)


def update(
    f: Forecast, x: FloatArray, j: IntArray, mean: FloatArray, cov: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Posterior of the prompt's mean after score x_j of one candidate, given its earlier ones.

    x (..., d) with zeros beyond j, j (...,), mean (..., d), cov (..., d, d), variance (...,) the
    present s^2. Returns mean, cov and the squared innovation in units of s^2 (one more observation
    of s^2).
    """
    h = np.eye(len(f.checks))[j] - f.beta[j]
    y = ((x - mean) * h).sum(-1)
    ph = (cov @ h[..., None])[..., 0]
    total = (h * ph).sum(-1) + f.residual[j] * variance
    gain = ph / total[..., None]
    return (
        mean + gain * y[..., None],
        cov - gain[..., None] * ph[..., None, :],
        y**2 / total * variance,
    )


# --- what a file must hold ------------------------------------------------------------------------


def _arrays(found: Mapping[str, Json]) -> dict[str, FloatArray]:
    """Every field of a file as numbers, each of its shape. ValueError for the first one that is
    not."""
    arrays = {name: _numbers(name, value) for name, value in found.items()}
    points = arrays["levels"].size
    d = arrays["checks"].size
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
            raise ValueError(
                f"the forecast's {name} must have shape {shape}, got {arrays[name].shape}"
            )
    return arrays


def _rules(arrays: Mapping[str, FloatArray], checks: Sequence[EstimatorAt]) -> dict[str, bool]:
    """What must hold of the fields' values, in words, and whether it does."""
    cov, prices = (arrays[name] for name in ("cov", "prices"))
    last = arrays["levels"].size - 1
    tolerance = 1e-9 * max(1.0, float(abs(cov).max()))
    return {
        f"checks must rise from step 0 on and end at {last}": rise(checks, last),
        "residual and spread_count must be positive": bool(
            (arrays["residual"] > 0).all() and arrays["spread_count"] > 0
        ),
        "spread_range must rise": bool(np.diff(arrays["spread_range"]) >= 0),
        "cov must be a covariance": np.allclose(cov, cov.T)
        and bool((np.linalg.eigvalsh(cov) >= -tolerance).all()),
        f"paths must be 1 to {MOST_PATHS:,} rows": 1 <= len(arrays["paths"]) <= MOST_PATHS,
        "prices must be pairs of positive numbers, the first rising": bool(
            (prices > 0).all() and (np.diff(prices[:, 0]) > 0).all()
        ),
    }


def _numbers(name: str, value: Json) -> FloatArray:
    """An array of a field of a file. ValueError unless it is a regular list of numbers that can be
    squared."""
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.size and array.dtype.kind not in "if":
        raise ValueError(
            f"the forecast's {name} must be numbers in lists of one length, got {str(value)[:60]}"
        )
    if not (abs(array.astype(float)) <= 1e30).all():
        raise ValueError(f"the forecast's {name} must be finite numbers, got {str(value)[:60]}")
    return array.astype(float)


def _rows(array: FloatArray, wide: int) -> FloatArray:
    """An empty list as no rows of this width."""
    return array.reshape(0, wide) if array.shape == (0,) else array
