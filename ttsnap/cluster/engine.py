"""ClusterEngine: one search on many devices, an actor with a live engine on each.

To the loop it is an engine like any other. A fresh seed goes to the actor with the fewest rows, and
all that is made of it stays there. Where an actor dies, all jobs begin anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from ttsnap.cluster.actor import EngineActor
from ttsnap.cluster.actor_group import ActorGroup, Pool
from ttsnap.cluster.merging import ClusterMeter, agreed, averaged, merged
from ttsnap.cluster.messages import Call, Description
from ttsnap.core.cost import Cost
from ttsnap.core.moves import FRESH
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.price import Price
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine, JobsLost

SOME = 16
"""Rows of a batch, until the batch sizes of the actors are known."""


class ClusterEngine(Engine):
    """The actors of a pool as one engine."""

    def __init__(self, pool: Pool) -> None:
        """ValueError where the engines are not alike."""
        self.group = ActorGroup(pool, self._revived)
        self.actors = range(len(pool))
        self._gradient: Gradient | None = None
        self._forget()
        for actor in self.actors:  # all load side by side
            self.group.post(actor, Call(EngineActor.start))
        self._describe(self.group.ask(self.actors, Call(EngineActor.describe)))
        self.reward_names = self._description.reward_names

    def _forget(self) -> None:
        self.group.reset()
        self.lost = Cost()
        self._broken = False
        """Whether an actor died, with the particles of jobs."""
        self._following = 0
        """The number of the next job."""
        self._home: dict[int, dict[int, int]] = {}
        """The actor of each particle, by job and uid."""
        self._open: dict[int, set[int]] = {}
        """Uids whose rows are not done, by job."""
        self._arrived: list[Outcome] = []
        self._failures: list[Exception] = []
        """Of batches, which `tick` raises: another call may hear of them."""
        self.sent = [0] * len(self.actors)
        """Rows on each actor."""
        self.batches = [SOME] * len(self.actors)

    def _describe(self, descriptions: Sequence[Description]) -> None:
        self._description = one = agreed(descriptions)
        self.grid = one.grid
        self.keep = one.keep
        self.draft_calls = one.draft_calls
        self.batches = [one.batch_sizes.get("batch_size", SOME) for one in descriptions]

    # --- what it can do and what that costs -------------------------------------------------------

    @property
    def offers(self) -> frozenset[Need]:
        return self._description.offers

    @property
    def price(self) -> Price:
        """With seconds as the slowest actor has them."""
        return self._description.price

    @property
    def capacity(self) -> int:
        return 2 * sum(self.batches)

    @property
    def nfe(self) -> int:
        return self.group.gone_nfe + sum(turn.nfe for turn in self.group.last)

    @property
    def ran(self) -> Cost:
        return self.group.ran

    @property
    def room(self) -> int:
        return self.group.gone_room + sum(turn.room for turn in self.group.last)

    @property
    def calibration_cost(self) -> Cost:  # type: ignore[override]
        """That of all actors, also what they find while a search runs."""
        return self.group.gone_calibration.plus(*(turn.calibration for turn in self.group.last))

    @property
    def notices(self) -> tuple[str, ...]:
        """What any of the actors says."""
        said = [notice for turn in self.group.last for notice in turn.notices]
        return tuple(dict.fromkeys(said))

    @property
    def batch_sizes(self) -> dict[str, int]:
        return dict(self._description.batch_sizes)

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by phase, on average over the actors, which work side by side."""
        return averaged([turn.timings for turn in self.group.last])

    def meter(self) -> ClusterMeter:
        """Measures memory and energy of all actors."""
        return ClusterMeter(self.group)

    def check(self, prompts: Sequence[Prompt]) -> None:
        self.group.ask(self.actors, Call(EngineActor.check, tuple(prompts)))

    def calibrate(self) -> Cost:
        answers = self.group.ask(self.actors, Call(EngineActor.calibrate))
        self._describe([description for _, description in answers])
        return Cost().plus(*(cost for cost, _ in answers))

    def differentiate(self, gradient: Gradient) -> None:
        self._gradient = gradient
        self._describe(self.group.ask(self.actors, Call(EngineActor.differentiate, gradient)))

    # --- jobs -------------------------------------------------------------------------------------

    def start(self) -> None:
        self._forget()
        self.group.ask(self.actors, Call(EngineActor.start, self._gradient))

    def begin_anew(self, paid: Cost) -> None:
        ran = self.group.ran
        self.start()
        self.group.gone = ran
        self.lost = ran - paid

    def admit(self, prompts: Sequence[Prompt]) -> None:
        try:
            self._describe(self.group.ask(self.actors, Call(EngineActor.admit, tuple(prompts))))
        except Exception:
            # some actors may have these jobs
            self.group.postpone(self.actors, Call(EngineActor.retract, self._following))
            raise
        self._following += len(prompts)

    def release(self, job: int) -> None:
        self._home.pop(job, None)
        self._open.pop(job, None)
        self.group.postpone(self.actors, Call(EngineActor.release, job))

    def weigh(self, job: int, weight: float) -> None:
        self.group.postpone(self.actors, Call(EngineActor.weigh, job, weight))

    def submit(self, job: int, plan: Plan) -> None:
        home = self._home.setdefault(job, {})
        actors = self._placed(home, plan)
        uids = plan.uid.tolist()
        home.update(zip(uids, actors, strict=True))
        self._open[job] = set(uids)
        for actor in sorted(set(actors)):
            rows = np.flatnonzero(np.equal(actors, actor))
            self.sent[actor] += len(rows)
            self.group.postpone([actor], Call(EngineActor.submit, job, plan.take(rows)))

    def _placed(self, at: Mapping[int, int], plan: Plan) -> list[int]:
        """The actor of each row: that of its parent, and for fresh seeds those with the fewest rows
        for their batch."""
        kinds = plan.rows.kind.tolist()
        parents = plan.rows.parent.tolist()
        home = [
            None if kind == FRESH else at[parent]
            for kind, parent in zip(kinds, parents, strict=True)
        ]
        loads = [sent + home.count(actor) for actor, sent in enumerate(self.sent)]
        placed = []
        for actor in home:
            if actor is None:
                actor = min(self.actors, key=lambda i: loads[i] / self.batches[i])
                loads[actor] += 1
            placed.append(actor)
        return placed

    def drop(self, job: int, uids: Sequence[int]) -> None:
        self.group.postpone(self.actors, Call(EngineActor.drop, job, tuple(uids)))

    def pending(self) -> int:
        return sum(map(len, self._open.values()))

    def tick(self) -> list[Outcome]:
        """The outcomes that are ready; waits for the first actor that has some, never for the
        slowest."""
        self._go_on()
        if self.pending() and self.group.busy:
            self._listen()
            if self._failures:
                raise self._failures.pop()
            self._go_on()
        return self.arrived()

    def _listen(self) -> None:
        if not self._broken:
            self.group.listen(1.0)
        if self._broken:
            raise JobsLost("an actor died")

    def arrived(self) -> list[Outcome]:
        done = self._arrived
        self._arrived = []
        return done

    def cancel(self, job: int) -> Outcome:
        home = self._home.get(job, {})
        actors = {home[uid] for uid in self._open.get(job, ())}
        parts: list[Outcome] = []
        for actor in actors:
            self.group.post(actor, Call(EngineActor.cancel, job), self._cancelled(actor, parts))
        while len(parts) < len(actors):
            self._listen()
        return merged(job, parts)

    def _cancelled(
        self, actor: int, parts: list[Outcome]
    ) -> Callable[[tuple[list[Outcome], Outcome]], None]:
        def cancelled(answer: tuple[list[Outcome], Outcome]) -> None:
            arrived, outcome = answer
            self._completed(actor, arrived)
            self._rest(actor, outcome)
            parts.append(outcome)

        return cancelled

    # --- rows on their way ------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Keep actors with rows at work."""
        for actor, sent in enumerate(self.sent):
            if sent:
                completed = partial(self._completed, actor)
                self.group.post_ahead(
                    actor, Call(EngineActor.tick), completed, self._failures.append
                )

    def _completed(self, actor: int, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._rest(actor, outcome)
        self._arrived += outcomes

    def _rest(self, actor: int, outcome: Outcome) -> None:
        self._open[outcome.job] -= set(outcome.uids.tolist())
        self.sent[actor] -= len(outcome.uids)

    def _revived(self, actor: int) -> None:
        """A new actor has nothing of what the dead one had."""
        self._broken = True
        self.group.post(actor, Call(EngineActor.start, self._gradient))
