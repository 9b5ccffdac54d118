"""The plans of one job, and where its particles are: enough to begin anew on an actor what a dead
one had.

Noise is drawn by key, so that the same rows give the same latents on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttsnap.cluster.messages import Remake
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan


@dataclass
class JobLog:
    """The log of one job. Particles are named by uid."""

    plans: list[Plan] = field(default_factory=list)
    """Rows that were cancelled go to where they stopped, without a score."""
    actor: dict[int, int] = field(default_factory=dict)
    """Where each particle is, or was; it stays there."""
    open: set[int] = field(default_factory=set)
    """Particles of the last plan that are not done."""
    row: dict[int, int] = field(default_factory=dict)
    """Where in the last plan the row of each particle is."""

    def begin(self, plan: Plan, actors: Sequence[int]) -> None:
        """A new plan, with the actor of each row. All rows of the plan before are done, or
        cancelled."""
        self.plans.append(plan)
        self.row = {uid: i for i, uid in enumerate(plan.uid.tolist())}
        self.open = set(self.row)
        self.actor.update(zip(self.row, actors, strict=True))

    def part(self, outcome: Outcome) -> Plan:
        """The rows of the last plan that an outcome tells of."""
        return self.plans[-1].take(np.array([self.row[uid] for uid in outcome.uids.tolist()], int))

    def rest(self, outcome: Outcome, *, cancelled: bool = False) -> None:
        """Rows are done, or stopped where they are."""
        uids = outcome.uids.tolist()
        self.open -= set(uids)
        if cancelled:
            rows = self.plans[-1].rows
            stop = rows.stop.copy()
            score = rows.score.copy()
            at = [self.row[uid] for uid in uids]
            stop[at] = outcome.step
            score[at] = False
            self.plans[-1] = replace(self.plans[-1], rows=rows._replace(stop=stop, score=score))

    def remake(self, job: int, actor: int) -> Remake | None:
        """How to make the particles of a dead actor again; None where it had none of this job."""
        parts = [
            plan.take(np.flatnonzero([self.actor[uid] == actor for uid in plan.uid.tolist()]))
            for plan in self.plans
        ]
        return Remake(job, tuple(parts), frozenset(self.open)) if any(map(len, parts)) else None
