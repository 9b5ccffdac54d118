"""The denoising grid of a search, and the task of one search on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.price import Price
from ttsnap.core.start import AS_NOISE, Start


@dataclass(frozen=True)
class Grid:
    """The denoising grid of one search: noise levels at steps 0..K.

    `levels` (K+1,), falling to 0, holds sigma / (alpha + sigma): the rectified-flow time of equal
    signal-to-noise ratio, so that a level means the same for every model, scheduler and step count.
    `evals` (K,) holds how many denoiser evaluations each step takes, by default one; solvers of two
    stages (Heun) take two.
    """

    levels: tuple[float, ...]
    evals: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels, float)
        if (
            len(levels) < 2
            or not np.all(np.diff(levels) < 0)
            or levels[0] > 1 + 1e-6
            or abs(levels[-1]) > 1e-6
        ):
            raise ValueError(
                f"grid levels must fall strictly from at most 1 to 0, got {self.levels}"
            )
        if self.evals is not None and (len(self.evals) != self.steps or min(self.evals) < 1):
            raise ValueError(f"grid evals must be {self.steps} numbers from 1 on, got {self.evals}")

    @cached_property
    def steps(self) -> int:
        """K."""
        return len(self.levels) - 1

    @cached_property
    def calls(self) -> IntArray:
        """(K+1,) denoiser evaluations that it takes to get from noise to each step."""
        evals = np.ones(self.steps, int) if self.evals is None else np.asarray(self.evals)
        return np.concatenate([[0], np.cumsum(evals)])

    @cached_property
    def nfe(self) -> int:
        """Denoiser evaluations of one image: K where each step takes one."""
        return int(self.calls[-1])

    def nearest(self, level: float) -> int:
        """The step before the last whose noise level is nearest to `level`."""
        return int(np.argmin(np.abs(np.asarray(self.levels[:-1]) - level)))

    def step_at(self, level: float) -> int:
        """The first step whose noise level is at most `level` (in (0, 1])."""
        return int(np.argmax(np.asarray(self.levels) <= level + 1e-9))


@dataclass(frozen=True)
class Task:
    """The task of one search: a grid, how many finished images, and what it may spend on them.

    Costs are in units of one denoiser evaluation, in which the tightest cap is counted.
    """

    grid: Grid
    keep: int = 1
    """Finished images that come back."""
    allowance: float = float("inf")
    """The most that this prompt may spend: its share of a pot, where the budget is `shared`; inf
    where nothing caps evaluations."""
    score_cost: float = 0.0
    """Of a decode with its reward calls; 0 where nothing caps evaluations."""
    shared: bool = False
    """Whether prompts draw on one pot."""
    check_cost: float | None = None
    """Of scoring an unfinished estimate, where that takes no decode; None: `score_cost`."""
    draft_calls: int = 0
    """Calls of the drafter in one draft; 0 where there is no drafter."""
    draft_cost: float = 0.0
    """Of one call of the drafter."""
    start: Start = AS_NOISE
    """How seeds come to step 0."""

    @cached_property
    def price(self) -> Price:
        """By which rows count, one reward call a score and one decode a finished image."""
        return Price(estimates="nothing", start=self.start)

    def spent(self, costs: Mapping[str, IntArray]) -> FloatArray:
        """What costs by this price (`plans.row_costs`) are in evaluations, of each row."""
        finals = costs["decodes"]
        total: FloatArray = (
            costs["nfe"]
            + self.checking * (costs["reward_calls"] - finals)
            + self.score_cost * finals
        )
        return total + self.draft_cost * costs["draft_calls"] if "draft_calls" in costs else total

    @property
    def checking(self) -> float:
        """check_cost, or score_cost where that is not set."""
        return self.score_cost if self.check_cost is None else self.check_cost

    def evaluations(self, at: int, stop: int, *, paid: bool | None = None) -> float:
        """What it takes to bring one particle from step `at` to `stop` and score it there, as plans
        count it.

        paid: whether the evaluation at `at` is; None: it was scored there, or is a fresh seed.
        Decodes and rewards are in evaluations, too.
        """
        grid = self.grid
        last = stop == self.grid.steps
        calls = (
            int(grid.calls[stop] - grid.calls[at]) + (not last) - (at > 0 if paid is None else paid)
        )
        return calls + (self.score_cost if last else self.checking)
