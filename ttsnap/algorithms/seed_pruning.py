"""Seed pruning on x0 estimates (TTSnap, arXiv 2511.22242, Algorithm 1).

Start n seeds; at a few noise levels score the x0 estimates and keep the best share; finish the
rest; return the best by the reward on the finished image. With an ordinary reward this is the
paper's TTSp, with a noise-aware one TTSnap.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.core.arrays import FloatArray
from ttsnap.core.grid import Task
from ttsnap.core.looks import ESTIMATE, Draft, Estimator
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import NOTHING
from ttsnap.core.particles import Particles
from ttsnap.core.plans import costs_in_turn
from ttsnap.files.settings import Count, Decay, Fraction, Settings


class Check(NamedTuple):
    """A step at which all particles are scored, and some kept."""

    step: int
    """Of the grid; of the last check, the end."""
    keep: float
    """Share of the particles that is kept."""
    look: Estimator
    """How particles are scored."""


class PruningState(NamedTuple):
    """What the search remembers between moves."""

    least: int
    """Particles that survive every check."""
    checks: tuple[Check, ...]
    """Checks to come."""


class Settled(NamedTuple):
    """Fields of SeedPruning whose defaults depend on what is finished."""

    keep: tuple[float, ...]
    levels: tuple[float, ...]
    draft_share: float


@dataclass(frozen=True)
class SeedPruning(Settings):
    """A check at step s costs s + 1 evaluations a seed. As many survive as images are to be
    returned; halves round up.

    The default is one late cut [ours], since ordinary rewards rank early estimates badly: not the
    best for any one model, but never far below best-of-N. `ttsnap tune` fits a schedule to a
    recording. Where drafts are finished, the default is another one: drafts take half of the cost,
    and the best are finished without a later check [ours]."""

    n: Count | None = None
    """Seeds; None for as many as the budget affords."""
    keep: tuple[Fraction, ...] | None = None
    """Share kept at each check, in (0, 1]; with keep and levels empty there is none but that by
    drafts, and what these leave is finished. None for (0.3,), or for none where drafts are finished
    and no other field says when to check."""
    levels: tuple[float, ...] | None = None
    """Where the checks are, as noise levels sigma / (alpha + sigma) in (0, 1] (1: pure noise),
    falling; they are the same for any number of steps. None for (0.6,), or for none as with
    keep."""
    steps: tuple[int, ...] | None = None
    """The checks as grid steps, rising, in place of levels. Steps that seeds take together
    (variety) count; a check among these comes after them."""
    draft_share: Decay | None = None
    """Where there is a drafter (--draft, draft=), the share of the cost that goes to drafts of the
    initial noise (core.Draft). By these the first seeds are dropped before they are denoised; 0 for
    none, below 1. None for 0.2, or for 0.5 as with keep."""
    draft_calls: Count | None = None
    """Calls of the drafter in a draft; None for as many as it was loaded with."""
    denoising_steps: Count | None = None
    """Denoising steps that the schedule was fitted to. A call takes as many where it names none."""
    shares_of: Count | None = None
    """Seeds that the first check's share is of, where n are more; None for n. With a drafter, what
    rounding leaves of a budget that n is fitted to goes to such further seeds, of which no more
    survive."""
    needs = NOTHING
    lockstep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        keep, levels, _ = self.settled()
        checks = self.steps if self.steps is not None else levels
        if len(keep) != len(checks):
            raise ValueError(f"{len(keep)} keep ratios {keep} for {len(checks)} checks {checks}")
        if self.steps is None and not all(0 < a <= 1 for a in levels):
            raise ValueError(f"levels must be in (0, 1], 1 being pure noise, got {levels}")
        if not all(a < b if self.steps is not None else a > b for a, b in pairwise(checks)):
            raise ValueError(
                f"checks must go from noisy to clean (steps rising, levels falling), got {checks}"
            )

    def settled(self, *, finishing: bool = False) -> Settled:
        """What None stands for; finishing: where drafts are finished."""
        alone = {self.keep, self.levels, self.steps, self.draft_share} == {None}
        default = _BEST_DRAFTS if finishing and alone else _LATE_CUT
        return Settled(
            default.keep if self.keep is None else self.keep,
            default.levels if self.levels is None else self.levels,
            default.draft_share if self.draft_share is None else self.draft_share,
        )

    def init(self, task: Task) -> PruningState:
        """The checks to come; on a coarse grid those of one step are merged, and those by level at
        its end dropped."""
        keep, levels, draft_share = self.settled(finishing=task.start.cost.draft_calls > 0)
        grid = task.grid
        began = task.start.first
        at = [grid.step_at(level) for level in levels]
        if self.steps is not None:
            at = [max(0, s - began) if s >= 0 else s for s in self.steps]
            steps = began + grid.steps
            if any(not 0 <= s < grid.steps for s in at):
                raise ValueError(
                    f"checks at steps {list(self.steps)} do not fit a grid of {steps} steps"
                    f" (0..{steps - 1})"
                )
        merged: dict[int, float] = {}
        for step, share in zip(at, keep, strict=True):
            merged[step] = merged.get(step, 1.0) * share
        checks = [Check(step, keep, ESTIMATE) for step, keep in merged.items() if step < grid.steps]
        checks.append(Check(grid.steps, 1.0, ESTIMATE))
        return PruningState(task.keep, (*self._drafts(checks, task, draft_share), *checks))

    def _drafts(self, checks: Sequence[Check], task: Task, share: float) -> Sequence[Check]:
        """The check by drafts before these, which keeps so few that drafts take this share of all
        costs."""
        if not (task.draft_calls and share):
            return ()
        calls = self.draft_calls or task.draft_calls
        # Drafts take n * one, n * keep survivors the rest.
        shares = np.cumprod([1.0, *(check.keep for check in checks[:-1])])
        one = task.draft_cost * calls + task.checking
        rest = float(shares @ _costs(checks, task, begun=True))
        keep = one / rest * (1 - share) / share
        return (Check(0, min(1.0, keep), Draft(calls)),)

    def pruning_cost(self, n: int, task: Task) -> float:
        """What it takes to bring n seeds to the last check, in evaluations as Task counts them, all
        looks included."""
        total, (*checks, _) = 0.0, self.init(task).checks
        if (size := task.start.size) > 1:
            total += task.start.cost.nfe * math.ceil(n / size)
        for one, check in zip(_costs(checks, task).tolist(), checks, strict=True):
            total += n * one
            n = max(task.keep, self.survivors(n, check.keep))
        return total

    def survivors(self, n: int, share: float) -> int:
        """How many of n particles a check keeps of which this share is to stay; halves are rounded
        up."""
        return math.floor(share * min(n, self.shares_of or n) + 0.5)

    def widened(self, more: int) -> SeedPruning:
        """With `more` seeds, of which no more survive the first check."""
        n = self.n or 1
        return dataclasses.replace(self, n=n + more, shares_of=min(n, self.shares_of or n))

    def step(
        self, state: PruningState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, PruningState]:
        if not len(particles):
            return fresh(self.n or 1, state.checks[0].step, look=state.checks[0].look), state
        check, *ahead = state.checks
        if not ahead:
            return None, state
        ranked = particles.ranked()
        # a move that was cut off leaves some behind, whose scores are of another look
        if ranked.ndim == 1:
            ranked = ranked[particles.step[ranked] == check.step]
        kept = max(state.least, self.survivors(ranked.shape[-1], check.keep))
        ranked = particles.spread(ranked, kept)
        # the best first, where one of them may end the search
        ends = len(ahead) == 1 and particles.selection.enough is not None
        now = min(kept, max(AT_ONCE, state.least)) if ends else kept
        move = advance(
            particles,
            ranked[..., :now],
            ahead[0].step,
            drop=ranked[..., kept:],
            look=ahead[0].look,
        )
        rest = [check._replace(keep=1.0)] if now < kept else []
        return move, PruningState(state.least, (*rest, *ahead))


AT_ONCE = 4
"""How many images are finished before the next ones are begun, where an image may end the search
[ours]: one by one saves little more, and leaves batches empty."""
_LATE_CUT = Settled(keep=(0.3,), levels=(0.6,), draft_share=0.2)
"""The default schedule, for seeds that are denoised from their noise."""
_BEST_DRAFTS = Settled(keep=(), levels=(), draft_share=0.5)
"""That for seeds whose drafts are finished."""


def _costs(checks: Sequence[Check], task: Task, *, begun: bool = False) -> FloatArray:
    """What each check takes of one seed, in evaluations as Task counts them, from the check before
    it on.

    begun: whether the drafts are paid by which seeds begin.
    """
    steps = np.array([check.step for check in checks])
    looks = [check.look for check in checks]
    return task.spent(costs_in_turn(steps, looks, task, begun=begun))
