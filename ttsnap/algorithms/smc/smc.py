"""Sequential Monte Carlo over the denoising path: particles are weighted by early scores and
resampled on the way.

FK steering (arXiv 2501.06848), DAS (arXiv 2501.05803; with guidance "twisted"), the breadth-first
search of arXiv 2505.23614 and the funnel (arXiv 2508.12361) are settings of it. Under guidance
(guided_steps.py) weights also carry the ratio of the plain sampler to the guided one. Whatever the
potentials, their product along a path is exp(lam r), r the reward of the finished image: weighted
images are drawn from p(x) exp(lam r(x)). Not inherited from published code: a last weight of
exp(lam max), weights lost between checks, a max from 0, clamping.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from ttsnap.algorithms.smc.resampling import RESAMPLERS, ess, log_sum_exp, normalised, temper_by_ess
from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.names import unknown
from ttsnap.core.needs import Need, Needs
from ttsnap.core.particles import Particles
from ttsnap.core.utility import rising
from ttsnap.files.settings import Count, Fraction, Natural, Positive, Settings, Share

Potential = Literal["difference", "max", "sum", "current"]
Temper = Literal["constant", "linear", "increase", "adaptive"]


class SMCState(NamedTuple):
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
    """(n,) log ratio of the plain sampler to the guided one up to the last check; 0 without
    guidance."""

    @property
    def log_z(self) -> float:
        """log of the estimate of Z, which is unbiased unless the budget cut a move."""
        return log_sum_exp(self.logw)

    @property
    def last(self) -> bool:
        return self.at == len(self.steps) - 1

    def of(self, rows: IntArray) -> SMCState:
        """Those at these rows alone."""
        return self._replace(
            uids=self.uids[rows],
            logw=self.logw[rows],
            total=self.total[rows],
            stat=self.stat[rows],
            ratio=self.ratio[rows],
        )


@dataclass(frozen=True)
class SMC(Settings):
    """Particles go together; where the effective sample size at a check is low, they are
    resampled."""

    n: Count | None = None
    """Particles; None for as many as the budget affords."""
    lam: Positive = 10.0
    """The target is p(x) exp(lam r(x)). It is in units of 1 / reward: take 2 to 10 over the spread
    of a prompt's rewards; 10 suits ImageReward, whose spread is about 1 [FK steering's code]."""
    potential: Potential = "max"
    """Of a check, from the score there (current), the max or sum of all so far, or the difference
    from the last [arXiv 2505.23614]."""
    temper: Temper = "increase"
    """How the inverse temperature rises to lam: constant, linear, increase (by min((1 + gamma)^step
    - 1, 1)), or adaptive: as far as the effective sample size allows [arXiv 2501.05803]."""
    gamma: Positive | None = None
    """Of temper increase; None so that 1 is reached after 87 % of the steps, as by .008 at 100
    steps [arXiv 2501.05803]."""
    resampler: str = "ssp"
    """Ssp, systematic, stratified, residual or multinomial [arXiv 2505.23614]."""
    ess: Share = 0.5
    """Share of the particles below which their effective number makes for resampling; 1: always, 0:
    never [FK steering's code and arXiv 2501.05803]."""
    every: Count | None = None
    """Grid steps from check to check; None: a fifth of them [FK steering, for SDXL: 20, 40, 60, 80
    of 100 steps]."""
    first: float = 0.84
    """Noise level of the first check [FK steering, for SDXL]."""
    last: float = 0.36
    """Noise level of the last check [FK steering, for SDXL]."""
    steps: tuple[Natural, ...] | None = None
    """The checks as grid steps, rising, in place of every, first and last."""
    unique: bool = False
    """Whether a particle that is drawn several times goes on once: pruning by resampling, for
    kernels that draw no noise [DOG-Trim's SMC on the ODE]."""
    shrink: Fraction = 1.0
    """Share of particles left after the last check; each check leaves the same share of the
    former."""
    lockstep: ClassVar[bool] = False

    @property
    def needs(self) -> Needs:
        return frozenset() if self.unique else frozenset({Need.BRANCH})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resampler not in RESAMPLERS:
            raise ValueError(unknown("resampler", self.resampler, RESAMPLERS))
        if self.temper == "adaptive" and self.ess == 1:
            raise ValueError(f"adaptive needs an ess below 1; got {self}")
        if not 0 <= self.last <= self.first <= 1:
            raise ValueError(f"levels must be 0 <= last <= first <= 1; got {self}")

    def init(self, task: Task) -> SMCState:
        # Not before the last step: samplers draw no noise in it, and the estimate there is the
        # image already.
        levels = np.asarray(task.grid.levels[:-2])
        end = task.grid.steps
        if self.steps is not None:
            if not all(a < b for a, b in pairwise((*self.steps, end - 1))):
                raise ValueError(
                    f"checks at steps {list(self.steps)} must rise and be below {end - 1}, of {end}"
                    " steps"
                )
            return SMCState((*self.steps, end), task.keep, self.n or 1)
        inside = np.flatnonzero((levels <= self.first + 1e-9) & (levels >= self.last - 1e-9))
        checks = inside[:: self.every or max(1, round(end / 5))].tolist()
        return SMCState((*checks, end), task.keep, self.n or 1)

    def adopt(self, state: SMCState, uids: IntArray, particles: Particles) -> SMCState:
        """Go on from these living particles, best first, repeated up to n, in place of fresh seeds.

        There is no check where they are: they were chosen by their scores there.
        """
        n = self.n or len(uids)
        if not len(uids):
            return state
        ahead = tuple(s for s in state.steps if s > particles.step[uids].max())
        return state._replace(steps=ahead, n=n, uids=np.resize(uids, n))

    def step(
        self, s: SMCState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, SMCState]:
        if s.at < 0:
            if len(s.uids):
                move = advance(particles, s.uids, s.steps[0], drop=particles.others(s.uids))
            else:
                move = fresh(s.n, s.steps[0])
            # below any score, which may be negative
            none = np.full(s.n, -np.inf if self.potential == "max" else 0.0)
            even = np.full(s.n, -np.log(s.n))
            zeros = np.zeros(s.n)
            s = s._replace(logw=even, total=zeros, stat=none, ratio=zeros)
        else:
            s = self._weighed(arrived(s, particles.moved), particles)
            if s.last:
                return None, s
            s = self._resampled(s, rng)
            move = advance(particles, s.uids, s.steps[s.at + 1], drop=particles.others(s.uids))
        return move, s._replace(at=s.at + 1)

    def _size(self, s: SMCState, at: int) -> int:
        """How many particles go to steps[at]."""
        share = float(self.shrink ** (at / max(1, len(s.steps) - 1)))
        return max(1, min(s.n, s.least), round(s.n * share))

    def _weighed(self, s: SMCState, particles: Particles) -> SMCState:
        """The weights times the potentials of the scores at this check; 0 where a score is
        missing."""
        r = particles.value(s.uids)
        known = np.isfinite(r)
        if not known.any() and not s.last:
            return s  # nothing was learnt
        r = np.where(known, r, 0.0)
        ratio = particles.log_ratio[s.uids]

        def weighed(lam: float) -> SMCState:
            stat = running(self.potential, s.stat, r)
            log_g = self._log_potential(s, r, lam, stat)
            logw = np.where(known, s.logw + log_g + ratio - s.ratio, -np.inf)
            return s._replace(lam=lam, stat=stat, total=s.total + log_g, logw=logw, ratio=ratio)

        if self.temper == "adaptive" and not s.last:
            least = self.ess * self._size(s, s.at)
            return weighed(temper_by_ess(lambda lam: weighed(lam).logw, s.lam, self.lam, least))
        return weighed(self.lam if s.last else self.lam * self._share(s))

    def _share(self, s: SMCState) -> float:
        """The inverse temperature at this check, as a share of the last one's."""
        if self.temper == "increase":
            return rising(s.steps[s.at], s.steps[-1], self.gamma)
        return (s.at + 1) / len(s.steps) if self.temper == "linear" else 1.0

    def _log_potential(
        self, s: SMCState, r: FloatArray, lam: float, stat: FloatArray
    ) -> FloatArray:
        """Of a lineage at this check: exp(lam stat), but for "difference", of which that is the
        product.

        The last makes the product over a lineage exp(lam r), whatever it was so far and whoever was
        resampled.
        """
        if s.last:
            return lam * r - s.total
        return lam * stat - (s.total if self.potential == "difference" else 0.0)

    def _resampled(self, s: SMCState, rng: np.random.Generator) -> SMCState:
        """Who goes on, the heaviest first: drawn by weight where weights are uneven or fewer are to
        go on."""
        m = self._size(s, s.at + 1)
        now = self._size(s, s.at)
        rows = np.asarray(np.flatnonzero(s.logw > -np.inf), int)
        logw = s.logw
        if self.ess >= 1 or m < now or ess(logw) < self.ess * now:
            rows = RESAMPLERS[self.resampler](normalised(logw), m, rng)
            rows = np.unique(rows) if self.unique else rows
            logw = np.full(len(logw), s.log_z - np.log(len(rows)))
        rows = rows[np.argsort(-s.logw[rows], kind="stable")]
        return s._replace(logw=logw).of(rows)


def arrived(s: SMCState, moved: IntArray) -> SMCState:
    """Of the rows of the last move, those carried out (`moved`, -1 where the budget cut one off).

    Those left take over the weight of the others.
    """
    rows = np.flatnonzero(moved >= 0)
    some = s._replace(uids=moved).of(rows)
    return some._replace(logw=some.logw + s.log_z - some.log_z)


def running(potential: str, before: FloatArray, r: FloatArray) -> FloatArray:
    """The max or sum of a lineage's scores up to r, or r itself (n,)."""
    return {"max": np.maximum(before, r), "sum": before + r}.get(potential, r)
