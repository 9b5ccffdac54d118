"""The bookkeeping of sequential Monte Carlo (smc.py): weighted lineages, their potentials, inverse temperatures."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from ttsnap.algorithms.smc.resampling import log_sum_exp
from ttsnap.core.arrays import FloatArray, IntArray

Potential = Literal["difference", "max", "sum", "current"]
Temper = Literal["constant", "linear", "increase", "adaptive"]


class State(NamedTuple):
    """Particles on the way to steps[at]; at -1 they are to start, from `uids` where some were adopted.

    For each (n,): its log weight, such that weights sum to an estimate of Z = E[exp(lam r)] in the end; `total` of the
    log potentials of its lineage; `stat`, the running max or sum of its scores; `ratio`, the log ratio of the plain
    sampler to the guided one up to the last check, 0 without guidance. `lam`: of the last check.
    """

    steps: tuple[int, ...]
    least: int
    n: int
    at: int = -1
    lam: float = 0.0
    uids: IntArray = np.empty(0, int)
    logw: FloatArray = np.empty(0)
    total: FloatArray = np.empty(0)
    stat: FloatArray = np.empty(0)
    ratio: FloatArray = np.empty(0)

    @property
    def log_z(self) -> float:
        """log of the estimate of Z, which is unbiased unless the budget cut a move."""
        return log_sum_exp(self.logw)

    @property
    def last(self) -> bool:
        return self.at == len(self.steps) - 1

    def of(self, rows: IntArray) -> State:
        """Those at these rows alone."""
        return self._replace(
            uids=self.uids[rows],
            logw=self.logw[rows],
            total=self.total[rows],
            stat=self.stat[rows],
            ratio=self.ratio[rows],
        )


def arrived(s: State, moved: IntArray) -> State:
    """Of the rows that the last move asked for, those carried out (`moved`, -1 where the budget cut one off).

    Those left take over the weight of the others.
    """
    rows = np.flatnonzero(moved >= 0)
    some = s._replace(uids=moved).of(rows)
    return some._replace(logw=some.logw + s.log_z - some.log_z)


def nothing_yet(potential: str, n: int) -> FloatArray:
    """What `running` starts from (n,). The max starts below any score: rewards may be negative."""
    return np.full(n, -np.inf if potential == "max" else 0.0)


def running(potential: str, before: FloatArray, r: FloatArray) -> FloatArray:
    """The max or sum of a lineage's scores up to r, or r itself (n,)."""
    return {"max": np.maximum(before, r), "sum": before + r}.get(potential, r)


def log_potential(potential: str, lam: float, stat: FloatArray, total: FloatArray) -> FloatArray:
    """FK steering's potentials (arXiv 2501.06848), in log space; `total` is a lineage's sum of them so far.

    They are exp(lam stat), but for "difference", whose product is that.
    """
    return lam * stat - (total if potential == "difference" else 0.0)
