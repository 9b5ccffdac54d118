"""Several rewards into one number, and how strongly it counts over a search.

A utility maps scores (..., N, R) to (..., N) float64, higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from ttsnap.core.arrays import FloatArray
from ttsnap.core.names import unknown

Utility: TypeAlias = Callable[[FloatArray], FloatArray]
"""It may compare rows with one another (ranks)."""


def mean(scores: FloatArray) -> FloatArray:
    """The plain mean. With one reward, that reward."""
    return np.asarray(np.add.reduce(scores, axis=-1, dtype=float) / scores.shape[-1])


def rank_sum(scores: FloatArray) -> FloatArray:
    """Sum over rewards of the rank within this set (ties share the mean rank), as in TTSnap (arXiv
    2511.22242)."""
    from scipy.stats import rankdata  # imported late: it would double the start of the command line

    return np.asarray(rankdata(scores, axis=-2).sum(axis=-1))


def weighted(weights: Sequence[float]) -> Utility:
    """Weighted sum; one weight per reward."""
    w = np.asarray(weights, float)
    if w.ndim != 1 or not len(w) or not np.isfinite(w).all():
        raise ValueError(
            f"weights must be a list of finite numbers, one per reward, got {list(weights)}"
        )
    return partial(_weigh, w)  # which can be sent to other processes, as no inner function can


def _weigh(weights: FloatArray, scores: FloatArray) -> FloatArray:
    if scores.shape[-1] != len(weights):
        raise ValueError(
            f"{len(weights)} weights for {scores.shape[-1]} rewards; give one weight per reward"
        )
    return np.asarray(scores @ weights)


FLOOR = 0.01
"""The least that an answer counts in a product: of images that miss something, those that miss
less stay ahead."""
TIED = 100
"""Products of answers are told apart to so many steps from 0 to 1. Those of one step are ties."""


def product(scores: FloatArray) -> FloatArray:
    """The product of answers in [0, 1], each at least FLOOR: how likely it is that all are yes."""
    return np.asarray(np.prod(np.clip(np.asarray(scores, float), FLOOR, 1.0), axis=-1))


def geometric(scores: FloatArray) -> FloatArray:
    """The geometric mean of such answers, which does not fall with their number."""
    return np.asarray(product(scores) ** (1 / scores.shape[-1]))


def tied(utility: Utility, counted: int) -> Utility:
    """A utility in [0, 1] of the first `counted` scores; of equal ones, the mean of the others
    decides.

    (floor(TIED u) + (1 + m / (1 + |m|)) / 2) / TIED, where u is the utility and m that mean.
    """
    return partial(_tie, utility, counted)


def _tie(utility: Utility, counted: int, scores: FloatArray) -> FloatArray:
    # rounded first: what is .29 in words is not to fall below its step by the last bit
    step = np.floor(np.round(TIED * utility(scores[..., :counted]), 9))
    other = mean(scores[..., counted:])
    return np.asarray((step + (1 + other / (1 + np.abs(other))) / 2) / TIED)


def first(utility: Utility, counted: int) -> Utility:
    """The utility of so many scores, from the first on; others are scored for another reason."""
    return partial(_of_first, utility, counted)


def _of_first(utility: Utility, counted: int, scores: FloatArray) -> FloatArray:
    return utility(scores[..., :counted])


def make(spec: str | Sequence[float], rewards: int = 0) -> Utility:
    """ "mean", "rank_sum" or a list of weights -> utility. rewards: how many there are, where that
    is known.

    ValueError for an unknown name, and for another number of weights."""
    if not isinstance(spec, str):
        made = weighted(spec)
        made(np.zeros((0, rewards or len(spec))))
        return made
    if spec not in UTILITIES:
        raise ValueError(unknown("utility", spec, sorted(UTILITIES), ", or give a list of weights"))
    return UTILITIES[spec]


def described(spec: str | Sequence[float], rewards: Sequence[str]) -> str:
    """A utility of these rewards in words: "mean of a and b", "1 a + 0.5 b", or just "a"."""
    if not isinstance(spec, str):
        return " + ".join(f"{weight:g} {name}" for weight, name in zip(spec, rewards, strict=True))
    if len(rewards) == 1:
        return rewards[0]
    return f"{_WORDS[spec]} of {', '.join(rewards[:-1])} and {rewards[-1]}"


def rising(step: int, steps: int, gamma: float | None = None) -> float:
    """The inverse temperature of DAS (arXiv 2501.05803) at a step, as a share of its last one.

    That is min((1 + gamma)^step - 1, 1). It reaches 1 after 0.87 of the steps where gamma is None,
    as with their .008 and 100 steps.
    """
    gamma = 2 ** (1 / (0.87 * steps)) - 1 if gamma is None else gamma
    return min(float((1 + gamma) ** step) - 1, 1.0)


UTILITIES: dict[str, Utility] = {
    "mean": mean,
    "rank_sum": rank_sum,
    "product": product,
    "geometric": geometric,
}
ANSWERS = ("product", "geometric")
"""The utilities of a checklist."""
_WORDS = {
    "mean": "mean",
    "rank_sum": "sum of the ranks",
    "product": "product",
    "geometric": "geometric mean",
}
