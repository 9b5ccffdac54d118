"""The bookkeeping of sequential Monte Carlo (smc.py): weighted lineages, their potentials, inverse temperatures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ttsnap.algorithms.smc.resampling import log_sum_exp
from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.particles import Particles

POTENTIALS = ("difference", "max", "sum", "current")


TEMPERS = ("constant", "linear", "increase", "adaptive")


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
        names = ("uids", "logw", "total", "stat", "ratio")
        return self._replace(**{name: getattr(self, name)[rows] for name in names})


def placed(parents: IntArray, born: int) -> IntArray:
    """Uids of a move's rows where `born` particles exist: a parent's first row continues it, others are new."""
    new = np.ones(len(parents), bool)
    new[np.unique(parents, return_index=True)[1]] = False
    new |= parents < 0
    return np.where(new, born - 1 + np.cumsum(new), parents)


def arrived(s: State, particles: Particles) -> State:
    """Without the rows that the budget cut off the move; those left take over their weight."""
    rows = np.flatnonzero(s.uids < len(particles))
    some = s.of(rows[particles.step[s.uids[rows]] == s.steps[s.at]])
    return some._replace(logw=some.logw + s.log_z - some.log_z)


def ratios(particles: Particles, uids: IntArray) -> FloatArray:
    """log p - log q of the paths of these particles (n,), p the plain sampler and q the one that made them."""
    return np.zeros(len(uids)) if particles.log_ratio is None else particles.log_ratio[uids]


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
