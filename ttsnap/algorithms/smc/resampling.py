"""Weights in log space, and resampling schemes: which particles go on, and how often, in place of
weighted ones.

Each scheme takes weights (n,), not negative, of any sum, and gives indices (m,), rising but for
multinomial; index i comes m w_i times on average, w the weights over their sum. A weight of 0 is
never drawn; where all are 0, they count as equal. Chopin & Papaspiliopoulos, An Introduction to
Sequential Monte Carlo, 2020, chapter 9.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray

Resampler = Callable[[FloatArray, int, np.random.Generator], IntArray]


def log_sum_exp(logw: FloatArray) -> float:
    """log sum_i exp(logw_i); -inf where all are."""
    top = float(np.max(logw, initial=-np.inf))
    return top + float(np.log(np.exp(logw - top).sum())) if np.isfinite(top) else top


def normalised(logw: FloatArray) -> FloatArray:
    """(n,) weights of sum 1, whatever the size of logw; all equal where every one is -inf."""
    top = float(np.max(logw, initial=-np.inf))
    weights = np.exp(logw - top) if np.isfinite(top) else np.ones(len(logw))
    return np.asarray(weights / weights.sum())


def ess(logw: FloatArray) -> float:
    """Effective sample size 1 / sum w^2, in [1, n] (Kong, Liu & Wong, 1994)."""
    return float(1 / np.square(normalised(logw)).sum())


def temper_by_ess(
    logw_at: Callable[[float], FloatArray], low: float, high: float, least: float
) -> float:
    """How far an inverse temperature may go from `low` to `high` before ess(logw_at(lam)) falls
    below `least`.

    By bisection (Jasra et al., 2011), from above: the result is just too far, or `high`.
    """
    if ess(logw_at(high)) >= least:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if ess(logw_at(middle)) < least else (middle, high)
    return high


def multinomial(weights: FloatArray, m: int, rng: np.random.Generator) -> IntArray:
    """Independent draws, in random order."""
    return _invert(weights, rng.random(m))


def stratified(weights: FloatArray, m: int, rng: np.random.Generator) -> IntArray:
    """One uniform in each of m equal slices of [0, 1) (Kitagawa, 1996): counts differ from m w by
    less than 2."""
    return _invert(weights, (np.arange(m) + rng.random(m)) / m)


def systematic(weights: FloatArray, m: int, rng: np.random.Generator) -> IntArray:
    """One uniform, repeated at distances of 1/m: counts are m w rounded down or up (Carpenter et
    al., 1999)."""
    return _invert(weights, (np.arange(m) + rng.random()) / m)


def residual(weights: FloatArray, m: int, rng: np.random.Generator) -> IntArray:
    """floor(m w) copies of each, the others multinomial in what is left of m w (Liu & Chen,
    1998)."""
    counts, rest = _whole(weights, m)
    left = m - int(counts.sum())
    if left:
        counts += np.bincount(multinomial(rest, left, rng), minlength=len(counts))
    return np.repeat(np.arange(len(counts)), counts)


def ssp(weights: FloatArray, m: int, rng: np.random.Generator) -> IntArray:
    """Srinivasan sampling process (Gerber, Chopin & Whiteley 2019, arXiv 1707.01845): m w, rounded
    at random.

    What is left of m w after rounding down is settled between two at a time: one of them ends up
    whole, at 0 or 1, so that both means stay. The other goes on to the next. Counts are m w rounded
    down or up, negatively associated.
    """
    counts, rest = _whole(weights, m)
    open_, *others = np.flatnonzero(rest).tolist() or [0]
    a = float(rest[open_])
    for j, u in zip(others, rng.random(len(others)), strict=True):
        b = float(rest[j])
        both = a + float(rest[j])
        if both < 1:  # one of them gets it all, the other is done at 0
            open_ = open_ if u * both < a else j
            a = both
        else:  # one of them is rounded up, and the other keeps what is over
            up, open_ = (open_, j) if u * (2 - both) < 1 - b else (j, open_)
            counts[up] += 1
            a = both - 1
    counts[open_] += m - counts.sum()  # 1 where a ended as 1 but for rounding errors, else 0
    return np.repeat(np.arange(len(counts)), counts)


def _share(weights: FloatArray) -> FloatArray:
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


def _invert(weights: FloatArray, u: FloatArray) -> IntArray:
    """The inverse of the weights' distribution function at u, which rounding must not bring to
    1."""
    cumulative = _share(weights).cumsum()
    return np.searchsorted(
        cumulative / cumulative[-1], np.minimum(u, np.nextafter(1, 0)), side="right"
    )


def _whole(weights: FloatArray, m: int) -> tuple[IntArray, FloatArray]:
    """m w rounded down, and what is left of it. What is whole but for rounding errors counts as
    whole."""
    share = m * _share(weights)
    whole = np.floor(share + 1e-9)
    return whole.astype(int), np.maximum(share - whole, 0)


RESAMPLERS: dict[str, Resampler] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
}
