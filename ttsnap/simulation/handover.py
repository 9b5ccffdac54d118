"""Pruning whose survivors another algorithm takes over, as in `ttsnap-rbf`: what a recording tells of it.

What branching makes of the survivors draws noise of its own, which no recording holds. But each seed was recorded to
the end of one way: a draw of where ways on from its state end, so that its score is right on average. So a pruning is
as good as the image in which its best survivor ends, unbranched, for the pruning's share of the budget.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ttsnap.algorithms.nested import Nested
from ttsnap.algorithms.options import name_of
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.pricing import finish_cost
from ttsnap.loop.budget import Budget
from ttsnap.recordings.replay import Recording

LEAST = 1e-6
"""Share of the seeds to keep where one is to be kept."""


@dataclass(frozen=True)
class Handover:
    """step: the grid step of the last check, where the other algorithm takes over. share: of the budget, for pruning.
    default: the checks before that, as they are where none were fitted."""

    step: int
    share: float
    default: SeedPruning

    @classmethod
    def of(cls, nested: Nested, recording: Recording) -> Handover:
        """That of a search, on the recording's grid. ValueError where it is not by seed pruning with a share."""
        first = nested.first
        if not isinstance(first, SeedPruning) or nested.share is None:
            raise ValueError(f"{name_of(first)} has no schedule to fit; first must be a seed pruning with a share")
        grid = recording.grid
        *before, step = first.steps or [grid.step_at(level) for level in first.levels]
        before = [k for k in before if k < step]  # the last check may come as soon on a coarse grid
        if not recording.scored[step]:
            raise ValueError(f"the survivors are handed over at step {step}, whose estimates were not recorded")
        return cls(step, nested.share, SeedPruning(None, first.keep[: len(before)], steps=tuple(before)))

    def searched(self, schedule: SeedPruning) -> SeedPruning:
        """Prune by this schedule up to the hand-over, and finish the best survivor. Without drafts: how many seeds they
        leave depends on what finishing those takes, which is not what branching takes."""
        keep, steps = (*schedule.keep, LEAST), (*(schedule.steps or ()), self.step)
        return dataclasses.replace(schedule, keep=keep, steps=steps, draft_share=0.0)

    def budget(self, budget: Budget | str, recording: Recording) -> Budget:
        """What that search may spend: the pruning's share of this budget, and what finishing one survivor takes."""
        whole, price = Budget.parse(budget).on(recording.grid), recording.price
        end = finish_cost(self.step, True, recording.grid, len(recording.reward_names), price)
        nfe = None if whole.nfe is None else int(self.share * whole.nfe + price.evaluations(end))
        flops = None if whole.flops is None else self.share * whole.flops + price.flops.of(end)
        return dataclasses.replace(whole, nfe=nfe, flops=flops)
