"""The bookkeeping of sequential Monte Carlo (smc.py): weighted lineages, their potentials, inverse temperatures."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from ttsnap.algorithms.smc.resampling import log_sum_exp
from ttsnap.core.arrays import FloatArray, IntArray

Potential = Literal["difference", "max", "sum", "current"]
Temper = Literal["constant", "linear", "increase", "adaptive"]


class State(NamedTuple):
    """Weighted lineages (n,) on the way to steps[at]."""

    steps: tuple[int, ...]
    """Steps of the checks, the last the end."""
    least: int
    """Particles that must be left at the end."""
    n: int
    """Particles at the start."""
    at: int = -1
    """Check that they go to; -1: they are to start, from `uids` where some were adopted."""
    lam: float = 0.0
    """Inverse temperature of the last check."""
    uids: IntArray = np.empty(0, int)
    """(n,) particles."""
    logw: FloatArray = np.empty(0)
    """(n,) log weights, such that weights sum to an estimate of Z = E[exp(lam r)] in the end."""
    total: FloatArray = np.empty(0)
    """(n,) sums of the log potentials of each lineage."""
    stat: FloatArray = np.empty(0)
    """(n,) running max or sum of each lineage's scores."""
    ratio: FloatArray = np.empty(0)
    """(n,) log ratio of the plain sampler to the guided one up to the last check; 0 without guidance."""

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
    """Of the rows of the last move, those carried out (`moved`, -1 where the budget cut one off).

    Those left take over the weight of the others.
    """
    rows = np.flatnonzero(moved >= 0)
    some = s._replace(uids=moved).of(rows)
    return some._replace(logw=some.logw + s.log_z - some.log_z)


def running(potential: str, before: FloatArray, r: FloatArray) -> FloatArray:
    """The max or sum of a lineage's scores up to r, or r itself (n,)."""
    return {"max": np.maximum(before, r), "sum": before + r}.get(potential, r)
