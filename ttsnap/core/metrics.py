"""How good a search is: curves against best-of-N, and how well early scores predict final ones.

Rewards are (..., S) over the seeds of a prompt, curves are over rising budgets.
"""

from __future__ import annotations

import numpy as np
import scipy  # its subpackages load when first used; all of them take a second

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray


def varied(rewards: FloatArray) -> BoolArray:
    """(P,) whether the rewards (P, S) of a prompt's seeds differ by more than rounding does."""
    return np.asarray(rewards.std(1) > 1e-9 * max(1.0, float(np.abs(rewards).max())))


def best_of_n(rewards: FloatArray, n: int, of: FloatArray | None = None) -> FloatArray:
    """Expected maximum of n of the S rewards (..., S) drawn without replacement: exact, no
    sampling.

    of: (..., S), what to average over the winners instead, say another reward that did not choose
        them.

    sum_i r_(i) C(S - i, n - 1) / C(S, n) with r_(1) >= r_(2) >= ...; the maximum is r_(i) when i is
    drawn and nothing above it is.
    """
    size = rewards.shape[-1]
    if not 1 <= n <= size:
        raise ValueError(f"n must be in 1..{size}, the number of seeds, got {n}")
    below = size - np.arange(1, size + 1)
    log_p = _log_choose(below, n - 1) - _log_choose(np.array(size), n)
    order = np.argsort(-np.asarray(rewards, float), axis=-1, kind="stable")
    return np.asarray(
        np.take_along_axis(np.asarray(rewards if of is None else of, float), order, -1)
        @ np.exp(log_p)
    )


def _log_choose(n: IntArray, k: int) -> FloatArray:
    """log C(n, k), -inf where k > n."""
    ok = n >= k
    m = np.where(ok, n, k)
    gammaln = scipy.special.gammaln
    value = gammaln(m + 1) - gammaln(k + 1) - gammaln(m - k + 1)
    return np.where(ok, value, -np.inf)


def omega(budgets: FloatArray, method: FloatArray, baseline: FloatArray) -> float:
    """Relative excess area over best-of-N, in percent (arXiv 2511.22242 and its released
    notebooks).

    100 (A(method) - A(baseline)) / A(baseline), with A the Simpson area over the budgets of a curve
    less the baseline's first value. nan where the baseline gains nothing from its first budget on,
    and there is no area.
    """
    zero = baseline[0]
    area = [
        float(scipy.integrate.simpson(np.asarray(curve) - zero, x=np.asarray(budgets)))
        for curve in (method, baseline)
    ]
    return 100 * (area[0] - area[1]) / area[1] if area[1] > 0 else float("nan")


def equivalent_n(value: float, rewards: FloatArray) -> float:
    """The N at which best-of-N reaches `value` in the mean over prompts: rewards (P, S); inf where
    none does."""
    curve = np.array([best_of_n(rewards, n).mean() for n in range(1, rewards.shape[-1] + 1)])
    if value > curve[-1] + _rounding(curve):
        return float("inf")
    return float(np.interp(value, curve, np.arange(1, len(curve) + 1)))


def _rounding(curve: FloatArray) -> float:
    """By how much two means that are equal may differ."""
    return 1e-9 * max(1.0, float(np.abs(curve).max()))


def matching_budget(budgets: FloatArray, method: FloatArray, target: float) -> float:
    """The budget at which a method's curve first reaches `target`, between its points; inf where it
    never does."""
    above = np.flatnonzero(np.asarray(method) >= target - _rounding(np.asarray(method)))
    if not len(above):
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(budgets[0])
    return float(np.interp(target, method[i - 1 : i + 1], budgets[i - 1 : i + 1]))


def rank_correlation(early: FloatArray, final: FloatArray, *, kind: str = "spearman") -> float:
    """Mean over prompts of the correlation within a prompt: early and final (P, S). kind: spearman
    or kendall."""
    if kind not in ("spearman", "kendall"):
        raise ValueError(f"kind must be spearman or kendall, got {kind!r}")
    if kind == "kendall":
        return float(
            np.nanmean(
                [scipy.stats.kendalltau(e, f).statistic for e, f in zip(early, final, strict=True)]
            )
        )
    return float(np.nanmean(spearman(early, final)))


def spearman(early: FloatArray, final: FloatArray) -> FloatArray:
    """(P,) rank correlation within each prompt of early and final (P, S); nan where the scores of a
    prompt do not vary, or one of them is nan."""
    a, b = (scipy.stats.rankdata(x, axis=1) for x in (early, final))
    a = a - a.mean(1, keepdims=True)
    b = b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        each = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    each[np.isnan(early).any(1) | np.isnan(final).any(1)] = np.nan
    return np.asarray(each)


def effective(n: int, rho: float) -> float:
    """How many independent ones n are worth that correlate with rho: n / (1 + (n - 1) rho)."""
    return n / (1 + (n - 1) * max(rho, 0.0))


def intraclass(values: FloatArray) -> float:
    """How much values (P, N) of one prompt have in common: their intraclass correlation, by one-way
    analysis of variance. nan where nothing varies, and for fewer than two of either."""
    prompts, n = values.shape
    if prompts < 2 or n < 2:
        return float("nan")
    between = n * float(values.mean(1).var(ddof=1))
    within = float(values.var(1, ddof=1).mean())
    whole = between + (n - 1) * within
    return (between - within) / whole if whole > 0 else float("nan")


def top_fraction(early: FloatArray, final: FloatArray, fraction: float) -> tuple[float, float]:
    """What a cut to the best `fraction` by early scores does, early and final (P, S): (accuracy,
    regret).

    accuracy: share of prompts whose best final image survives; regret: mean final reward lost by
        the cut.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    kept = max(1, int(fraction * early.shape[1] + 0.5))
    survivors = np.argsort(-early, axis=1, kind="stable")[:, :kept]
    best = np.take_along_axis(final, survivors, 1).max(1)
    return float((best == final.max(1)).mean()), float((final.max(1) - best).mean())
