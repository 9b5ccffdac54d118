"""Price of compute: buy one check of one candidate at a time, where it is worth most, and stop when
none is worth it.

Every candidate, and a fresh seed, has a reservation value at a price per evaluation
(reservation.py; Weitzman 1979). The highest is advanced to its next check, of which the first may
be a draft of its initial noise; when the best finished image beats them all, nothing is worth its
price. Two ways to set the price:

- a budget of one prompt's own: the price is `kappa` over what is left of it, in units of the
  prompt's spread, and falls until something is worth buying; only candidates that can still be
  finished are bought;
- a pot that prompts share: every prompt stops at the price that spends the pot on average, by
  calibration. Then the price falls in rungs. Each prompt says (Move.value) at which price it would
  go on, and the loop serves the highest first. In a pot for later searches as well, it does not
  fall below the calibrated one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ttsnap.algorithms.pricing.forecast import Forecast, update
from ttsnap.algorithms.pricing.reservation import Tariff, break_even, look_up, tariff_of
from ttsnap.core.arrays import BoolArray, FloatArray, IntArray
from ttsnap.core.grid import Task
from ttsnap.core.looks import ESTIMATE, ByStep, Estimator
from ttsnap.core.moves import Kind, Move, Rows, fresh
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles

_Kind = TypeVar("_Kind", bound=np.generic)
_RUNG = 0.93
_LOWER = 0.8
_LEAST = 1e-3


class PriceOfComputeState(NamedTuple):
    """Beliefs about the prompt; every array may have a leading axis of searches in lockstep."""

    tariff: Tariff
    mean: FloatArray
    """(d,) posterior mean of the prompt's mean scores."""
    cov: FloatArray
    """(d, d) its covariance."""
    squares: FloatArray
    """Sum of squared innovations, which tell the prompt's spread."""
    seen: FloatArray
    """How many innovations there were."""
    stage: IntArray
    """(N,) checks paid by each particle, -1 where its reward failed."""
    evidence: FloatArray
    """(N,) the part of each particle's forecast that its scores tell."""
    best: FloatArray
    """The best finished reward."""
    spent: FloatArray
    """Of the allowance."""
    rung: FloatArray
    """How often the price of a pot has fallen."""
    lower: FloatArray
    """Factor on the price for the present rung."""


@dataclass(frozen=True)
class PriceOfCompute:
    """One candidate at a time is taken to its next check; which one, and when to stop, follows from
    the forecast."""

    forecast: Forecast
    """What `ttsnap tune --policy price-of-compute` found in a recording of this model, steps and reward; the file that
    it writes is an algorithm by itself (--algorithm priced.json)."""
    n: int = 256
    """Most seeds of a prompt."""
    width: int = 1
    """Candidates advanced at once, to fill a batch where there are few prompts. It costs some
    quality, as the second is chosen before the first is seen. In a pot only what is worth the same
    price goes along. Simulation knows 1 only."""
    price: float | None = None
    """Per evaluation, in units of the reward, for a pot, in place of the calibrated one."""
    floor: float = 0.0
    """The price at which a pot's prompts stop."""
    cap: float = 3.0
    """A prompt's most in a pot, in shares."""
    kappa: float = 0.06
    """Patience: with a budget of the prompt's own, the price is kappa over what is left of it."""
    lockstep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.forecast, dict):
            object.__setattr__(self, "forecast", Forecast.from_json(self.forecast))
        amounts = {
            "n": self.n,
            "width": self.width,
            "price": self.price,
            "cap": self.cap,
            "kappa": self.kappa,
        }
        for name, value in amounts.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.cap < 1 or self.floor < 0:
            raise ValueError(
                f"cap must be at least 1 share and floor at least 0, got {self.cap} and"
                f" {self.floor}"
            )

    @property
    def needs(self) -> Needs:
        return self._look.needs

    @property
    def _look(self) -> Estimator:
        """At each step by which the forecast was fitted there."""
        looks = self.forecast.looks
        return ByStep(looks) if looks else ESTIMATE

    def init(self, task: Task) -> PriceOfComputeState:
        f = self.forecast
        if len(f.levels) != task.grid.steps + 1 or not np.allclose(
            f.levels, task.grid.levels, atol=1e-3
        ):
            raise ValueError(
                f"calibrated on a grid of {len(f.levels) - 1} steps with levels {f.levels[:3]}...,"
                f" asked to search one of {task.grid.steps} with {task.grid.levels[:3]}...; record"
                " and calibrate with these steps"
            )
        if not np.isfinite(task.allowance):
            raise ValueError("price-of-compute needs a budget in evaluations, FLOPs or seconds")
        if not task.start.plain:
            raise ValueError(
                "price-of-compute starts seeds that wait, and here they begin from drafts or in"
                " groups; set finish to noise and leave variety out"
            )
        zero = np.zeros(())
        none = np.empty(0)
        worst = zero - np.inf
        prices = tariff_of(f, task, self.price, self.cap)
        return PriceOfComputeState(
            prices, f.mean, f.cov, zero, zero, none.astype(int), none, worst, zero, zero, zero + 1
        )

    def step(
        self, state: PriceOfComputeState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, PriceOfComputeState]:
        lead = particles.step.shape[:-1]
        if not len(particles):
            particles.selection.check_scores_each("price-of-compute")
            most = int(state.tariff.cap / max(state.tariff.costs[0], 1e-6)) + 1
            return fresh(min(self.n, most), 0, score=False), state
        begun = state.stage.shape == particles.step.shape
        state = self._learn(state, particles) if begun else self._begin(state, particles.step.shape)
        state = state._replace(spent=np.asarray(state.tariff.task.allowance - particles.left))
        chosen: list[tuple[IntArray, IntArray, FloatArray]] = []
        trial = state
        for i in range(self.width if not lead else 1):
            uid, stop, value, trial = self._choose(trial)
            chosen.append((uid, stop, value))
            # what goes beside it must not lower the price at which its score is looked at
            if i == 0:
                state = state._replace(rung=trial.rung, lower=trial.lower)
        uid = np.stack([one[0] for one in chosen], -1)
        stop = np.stack([one[1] for one in chosen], -1)
        value = np.stack([one[2] for one in chosen], -1)
        # A pot serves a move by its value, so all its rows are worth that; with an own budget the
        # batch is filled.
        wanted = (value > -np.inf) & ((value == value[..., :1]) | (not state.tariff.task.shared))
        if not lead:
            uid = uid[wanted]
            stop = stop[wanted]
            if not len(uid):
                return None, state
        kind = np.full(uid.shape, Kind.CONTINUE, int)
        at = np.take_along_axis(particles.step, uid, -1)
        rows = Rows(kind, uid, at, stop, np.ones(uid.shape, bool), np.ones(uid.shape))
        return Move(rows, self._look, value=value[..., 0] if lead else float(value[0])), state

    def _begin(self, state: PriceOfComputeState, shape: tuple[int, ...]) -> PriceOfComputeState:
        """A state with room for the particles of `shape` (..., n), and a copy of each belief for
        every search."""
        beliefs: dict[str, Any] = {
            name: np.array(np.broadcast_to(belief, (*shape[:-1], *belief.shape)))
            for name, belief in state._asdict().items()
            if name not in ("tariff", "stage", "evidence")
        }
        return state._replace(
            **beliefs, stage=np.zeros(shape, int), evidence=np.full(shape, -np.inf)
        )

    def _learn(self, state: PriceOfComputeState, particles: Particles) -> PriceOfComputeState:
        """Take in the scores of the last move's rows that were carried out."""
        f = self.forecast
        checks = f.steps
        d = len(f.checks)
        mean = state.mean
        cov = state.cov
        squares = state.squares
        seen = state.seen
        best = state.best
        stage = state.stage.copy()
        evidence = state.evidence.copy()
        for w in range(particles.moved.shape[-1]):
            uid = np.maximum(particles.moved[..., w, None], 0)
            j = np.take_along_axis(stage, uid, -1)[..., 0]
            went = (particles.moved[..., w] >= 0) & (j >= 0) & (j < d)
            stop = np.take_along_axis(particles.scored, uid, -1)[..., 0]
            straight = stop != checks[np.clip(j, 0, d - 1)]  # to the end, past its checks
            j = np.where(straight, d - 1, np.clip(j, 0, d - 1))
            lead = (np.arange(len(uid))[:, None],) if uid.ndim > 1 else ()
            x = particles.selection.values(particles.scores[(*lead, uid, checks)])
            last = np.take_along_axis(x, j[..., None], -1)[..., 0]
            failed = went & np.isnan(last)
            x = np.where(np.arange(d) <= j[..., None], np.nan_to_num(x), 0.0)
            learn = went & ~failed & ~straight
            if learn.any():
                new = update(f, x, j, mean, cov, self._variance(mean, squares, seen))
                mean = np.where(learn[..., None], new[0], mean)
                cov = np.where(learn[..., None, None], new[1], cov)
                squares = squares + np.where(learn, new[2], 0.0)
                seen = seen + learn
            done = went & ~failed & (j == d - 1)
            if particles.selection.gated:
                done &= ~particles.refused[(*lead, uid[..., 0])]
            best = np.where(done, np.fmax(best, last), best)
            reached = np.where(failed, -1, j + 1)
            _put(stage, uid, reached, went)
            _put(evidence, uid, np.where(failed, -np.inf, (f.gamma[j] * x).sum(-1)), went)
        return state._replace(
            mean=mean,
            cov=cov,
            squares=squares,
            seen=seen,
            stage=stage,
            evidence=evidence,
            best=best,
        )

    def _variance(self, mean: FloatArray, squares: FloatArray, seen: FloatArray) -> FloatArray:
        f = self.forecast
        return np.asarray(
            (f.spread_count * f.prior_variance(mean[..., -1]) + squares) / (f.spread_count + seen)
        )

    def _first_of(self, state: PriceOfComputeState, stage: int) -> IntArray:
        """The index of the candidate of a stage with the most evidence; of those not begun, the
        first."""
        evidence = state.evidence if stage else 0.0
        return np.asarray(np.where(state.stage == stage, evidence, -np.inf).argmax(-1))

    def _choose(
        self, state: PriceOfComputeState
    ) -> tuple[IntArray, IntArray, FloatArray, PriceOfComputeState]:
        """The candidate with the highest reservation value, where it goes, at what price; -inf when
        none is worth it.

        Also the state as if the choice had been paid for, to choose another one beside it.
        """
        f = self.forecast
        tariff = state.tariff
        d = len(f.checks)
        steps = tariff.task.grid.steps
        stages = np.arange(d)
        first = np.stack([self._first_of(state, stage) for stage in range(d)], -1)
        there = np.take_along_axis(state.stage, first, -1) == stages
        top = np.where(there & (stages > 0), np.take_along_axis(state.evidence, first, -1), 0.0)
        left = (tariff.cap - state.spent)[..., None]
        must = np.asarray(not tariff.task.shared) | (state.best == -np.inf)
        open_ = there & (np.where(must[..., None], tariff.finish[:-1], tariff.costs) <= left + 1e-9)
        center = state.mean[..., -1:]
        spread = np.sqrt(self._variance(state.mean, state.squares, state.seen))[..., None]
        # of the check before each stage
        gamma = np.vstack([np.zeros_like(f.gamma[:1]), f.gamma[:-1]])
        forecast = top + center - np.einsum("jk,...k->...j", gamma, state.mean)
        z = np.where(stages > 0, (forecast - center) / spread, 0.0)
        level = self._level(state, spread[..., 0])
        limit = break_even(tariff.table, stages, z, (state.best[..., None] - center) / spread)
        limit = np.where(open_, limit, 0.0).max(-1) / level
        rung, lower = self._fall(state, np.where(open_.any(-1), limit, np.inf))
        price = self._rung_price(tariff, rung)
        offered = price * lower
        worth = offered < limit
        index = look_up(tariff.table, (offered * level)[..., None], stages, z)
        index = np.where(open_, center + spread * index, -np.inf)
        j = index.argmax(-1)
        uid = np.take_along_axis(first, j[..., None], -1)[..., 0]
        straight = (
            must & (j < d - 1) & (tariff.costs[j] + tariff.finish[j + 1] > left[..., 0] + 1e-9)
        )
        stop = np.where(straight, steps, f.steps[j])
        value = np.where(worth, price if tariff.task.shared else index.max(-1), -np.inf)
        cost = np.where(worth, np.where(straight, tariff.finish[j], tariff.costs[j]), 0.0)
        stage = state.stage.copy()
        _put(stage, uid[..., None], np.full(uid.shape, -1), worth)
        paid = state._replace(stage=stage, spent=state.spent + cost, rung=rung, lower=lower)
        return uid, stop, value, paid

    def _level(self, s: PriceOfComputeState, spread: FloatArray) -> FloatArray:
        """A price of 1 in the unit of the table, per evaluation over s; kappa over what is left of
        an own budget."""
        task = s.tariff.task
        if not task.shared:
            return np.asarray(self.kappa / np.maximum(s.tariff.cap - s.spent, 3.0))
        return np.asarray(
            np.maximum(1.0, s.spent / task.allowance) ** self._pacing(task)[0] / spread
        )

    def _rung_price(self, tariff: Tariff, rung: FloatArray) -> FloatArray:
        """By whole rungs, so that it is the same number for every prompt on a rung; 1 with an own
        budget."""
        return np.asarray((tariff.price if tariff.task.shared else 1.0) * _RUNG**rung)

    def _fall(self, s: PriceOfComputeState, limit: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The first rung and `lower` whose price is below `limit`, falling from the present ones.

        On every rung, `lower` dips in steps to a floor of its own before the price falls to the
        next. Where nothing is below the limit, both end at their lowest.
        """
        # so that rounding leaves them below
        task = s.tariff.task
        limit = limit * (1 - 1e-9)
        rung, lower = (np.array(np.broadcast_to(a, limit.shape)) for a in (s.rung, s.lower))
        least = np.full(limit.shape, _LEAST)
        if task.shared:
            least = np.maximum(
                np.minimum(1.0, s.spent / task.allowance) ** self._pacing(task)[1], _LEAST
            )
            deepest, below = (
                a * _LOWER ** _times(_LOWER, least / a) for a in (lower, np.ones(limit.shape))
            )
            end = max(self.floor, s.tariff.last) * (1 - 1e-9)
            most = np.maximum(
                _times(_RUNG, end / self._rung_price(s.tariff, np.zeros(())), strict=True) - 1, rung
            )
            needed = _times(
                _RUNG, limit / (self._rung_price(s.tariff, np.zeros(())) * below), strict=True
            )
            fall = self._rung_price(s.tariff, rung) * deepest >= limit
            needed = np.where(fall, np.clip(needed, rung + 1, most), rung)
            rung, lower = needed, np.where(needed > rung, 1.0, lower)
        top = self._rung_price(s.tariff, rung) * lower
        dips = np.minimum(_times(_LOWER, limit / top, strict=True), _times(_LOWER, least / lower))
        return rung, lower * _LOWER**dips

    def _pacing(self, task: Task) -> tuple[float, float]:
        """How fast the price rises above the allowance and may dip below it: gentler for a few
        images each."""
        return (2.0, 0.0) if task.allowance <= 5 * (task.grid.nfe + task.score_cost) else (4.0, 1.0)


def _put(array: NDArray[_Kind], uid: IntArray, value: NDArray[_Kind], where: BoolArray) -> None:
    """array[uid] = value where `where`, in place; uid (..., 1)."""
    old = np.take_along_axis(array, uid, -1)
    np.put_along_axis(array, uid, np.where(where[..., None], value[..., None], old), -1)


def _times(factor: float, target: FloatArray, *, strict: bool = False) -> FloatArray:
    """How often 1 must be multiplied by `factor` < 1 to be at most `target`, or below it; 0 where
    it is already."""
    with np.errstate(divide="ignore"):
        t = np.log(target) / np.log(factor)
    times: FloatArray = np.maximum(np.floor(t) + 1 if strict else np.ceil(t - 1e-9), 0)
    return times
