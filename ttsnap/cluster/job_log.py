"""The plans of one job, and where its particles are: enough to make the particles of a dead actor
again.

Noise is drawn by key, so that the same rows give the same latents on any device. A particle is made
again by all of its rows, from its seed on, and by those of its ancestors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttsnap.cluster.messages import Remake
from ttsnap.core.moves import ASCEND, CONTINUE
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan, goes_on


@dataclass
class JobLog:
    """The log of one job. Particles are named by uid."""

    plans: list[Plan] = field(default_factory=list)
    stops: list[dict[int, int]] = field(default_factory=list)
    """By plan, the steps at which cancelled rows stopped."""
    actor: dict[int, int] = field(default_factory=dict)
    """Where each particle is, at rest or under way; it stays there."""
    open: set[int] = field(default_factory=set)
    """Particles of the last plan that are not done."""
    cached: set[int] = field(default_factory=set)
    """Particles whose evaluation is there."""
    gradients: set[int] = field(default_factory=set)
    """Particles whose gradient is there."""
    row: dict[int, int] = field(default_factory=dict)
    """Where in the last plan the row of each particle is."""

    def begin(self, plan: Plan, actors: Sequence[int]) -> None:
        """A new plan, with the actor of each row. All rows of the plan before are done, or
        cancelled."""
        if self.plans:
            before = self.plans[-1].rows
            self.gradients |= set(before.parent[before.kind == ASCEND].tolist())
        self.plans.append(plan)
        self.stops.append({})
        self.row = {uid: i for i, uid in enumerate(plan.uid.tolist())}
        self.open = set(self.row)
        self.actor.update(zip(self.row, actors, strict=True))

    def rest(self, outcome: Outcome, *, cancelled: bool = False) -> None:
        """Rows are done, or stopped where they are."""
        uids = outcome.uids.tolist()
        self.open -= set(uids)
        if cancelled:
            self.stops[-1].update(zip(uids, outcome.step.tolist(), strict=True))
        for flags, known in ((outcome.cached, self.cached), (outcome.has_gradient, self.gradients)):
            if flags is not None:
                known -= {uid for uid, flag in zip(uids, flags, strict=True) if not flag}
                known |= {uid for uid, flag in zip(uids, flags, strict=True) if flag}

    def drop(self, uids: Iterable[int]) -> dict[int, list[int]]:
        """Particles are given up; returns those that were at rest, by actor."""
        by_actor = defaultdict[int, list[int]](list)
        for uid in set(uids) & self.actor.keys() - self.open:
            by_actor[self.actor.pop(uid)].append(uid)
        return by_actor

    def remake(self, job: int, actor: int) -> Remake | None:
        """How to make the particles of a dead actor again; None where it had none of this job."""
        mine = {uid for uid, where in self.actor.items() if where == actor}
        again, keep = mine & self.open, mine - self.open
        if not again and not keep:
            return None
        parts, last = self._needed(keep, again), len(self.plans) - 1
        plan, done, before = None, frozenset[int](), frozenset[int]()
        if again:
            plan = self.plans[last].take(np.array(parts.pop(), int))
            due = np.array([uid in again for uid in plan.uid.tolist()], bool)
            plan = replace(plan, rows=plan.rows._replace(score=plan.rows.score & due))
            done = frozenset(plan.uid[~due].tolist())
            before = frozenset(plan.rows.parent[due & plan.paid & goes_on(plan.rows)].tolist())
        earlier = [
            unscored(self.plans[i], rows, self.stops[i]) for i, rows in enumerate(parts) if rows
        ]
        return Remake(
            job,
            tuple(earlier),
            plan,
            done,
            frozenset(keep),
            before,
            frozenset(keep & self.cached),
            frozenset(self.gradients),
        )

    def _needed(self, keep: Collection[int], again: Collection[int]) -> list[list[int]]:
        """By plan, the rows that these particles take, traced from the last plan back to the
        first."""
        wanted, parts = set(keep), []
        for at in reversed(range(len(self.plans))):
            plan, last = self.plans[at], at == len(self.plans) - 1
            columns = (
                plan.uid.tolist(),
                plan.rows.kind.tolist(),
                plan.rows.parent.tolist(),
                plan.near.tolist(),
            )
            rows, made, sources = [], set(), set()
            for i, (uid, kind, parent, near) in enumerate(zip(*columns, strict=True)):
                if not (
                    uid in again or (uid in wanted and uid not in self.open)
                    if last
                    else uid in wanted
                ):
                    continue
                rows.append(i)
                if kind != CONTINUE:
                    made.add(uid)
                sources |= {source for source in (parent, near) if source >= 0}
            wanted = wanted - made | sources
            parts.append(rows)
        return parts[::-1]


def unscored(plan: Plan, rows: Sequence[int], stops: dict[int, int]) -> Plan:
    """Some rows of a plan without their scores, each to its end, or to where it was stopped
    before."""
    part = plan.take(np.asarray(rows, int))
    stop = np.array(
        [
            stops.get(uid, end)
            for uid, end in zip(part.uid.tolist(), part.rows.stop.tolist(), strict=True)
        ]
    )
    return replace(part, rows=part.rows._replace(score=np.zeros(len(part), bool), stop=stop))
