"""ClusterEngine: one search on many devices, an actor with a live engine on each.

To the loop it is an engine like any other. A fresh seed goes to the actor with the fewest rows, and
all that is made of it stays there. job_log.py knows how to make again what a dead actor had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ttsnap.cluster.actor import EngineActor
from ttsnap.cluster.actor_group import ActorGroup, Pool
from ttsnap.cluster.job_log import JobLog
from ttsnap.cluster.merging import ClusterMeter, agreed, averaged, begun, merged
from ttsnap.cluster.messages import Call, Description
from ttsnap.core.cost import Cost
from ttsnap.core.moves import FRESH
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.price import Price
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine

SOME = 16
"""Rows of a batch, until the batch sizes of the actors are known."""


class ClusterEngine(Engine):
    """The actors of a pool as one engine."""

    def __init__(self, pool: Pool) -> None:
        """ValueError where the engines are not alike."""
        self.group, self.actors = ActorGroup(pool, self._revived), range(len(pool))
        self._gradient: Gradient | None = None
        self._forget()
        for actor in self.actors:  # all load side by side
            self.group.post(actor, Call(EngineActor.start))
        self._describe(self.group.ask(self.actors, Call(EngineActor.describe)))
        self.reward_names = self._description.reward_names

    def _forget(self) -> None:
        self.group.reset()
        self._prompts: dict[int, Prompt] = {}
        self._following = 0
        self._logs: dict[int, JobLog] = {}
        self._weights: dict[int, float] = {}
        self._arrived: list[Outcome] = []
        self._failures: list[Exception] = []
        """Of batches, which `tick` raises: another call may hear of them."""
        self._cancelling: dict[int, dict[int, Outcome | None]] = {}
        self._credited = Cost()
        self.sent = [0] * len(self.actors)
        """Rows on each actor."""
        self.batches = [SOME] * len(self.actors)

    def _describe(self, descriptions: Sequence[Description]) -> None:
        self._description = one = agreed(descriptions)
        self.grid, self.keep, self.draft_calls = one.grid, one.keep, one.draft_calls
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

    @property
    def lost(self) -> Cost:
        """Cost that was computed in vain because an actor died; exact while no row is under way."""
        if not self.group.died:
            return Cost()
        gap = (self.group.ran - self._credited).named()
        return Cost(**{name: max(0, amount) for name, amount in gap.items()})

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
        self.group.ask(self.actors, Call(EngineActor.start))

    def admit(self, prompts: Sequence[Prompt]) -> None:
        first = self._following
        self._prompts |= dict(enumerate(prompts, first))
        self._following += len(prompts)
        try:
            self._describe(
                self.group.ask(self.actors, Call(EngineActor.admit, first, tuple(prompts)))
            )
        except Exception:
            self._following = first
            self._prompts = {job: prompt for job, prompt in self._prompts.items() if job < first}
            # some actors may have these jobs
            self.group.postpone(self.actors, Call(EngineActor.retract, first))
            raise

    def release(self, job: int) -> None:
        self._logs.pop(job, None)
        self._prompts.pop(job, None)
        self._weights.pop(job, None)
        self.group.postpone(self.actors, Call(EngineActor.release, job))

    def weigh(self, job: int, weight: float) -> None:
        self._weights[job] = weight
        self.group.postpone(self.actors, Call(EngineActor.weigh, job, weight))

    def submit(self, job: int, plan: Plan) -> None:
        log = self._logs.setdefault(job, JobLog())
        actors = self._placed(log, plan)
        log.begin(plan, actors)
        for actor in sorted(set(actors)):
            rows = np.flatnonzero(np.equal(actors, actor))
            self.sent[actor] += len(rows)
            self.group.postpone([actor], Call(EngineActor.submit, job, plan.take(rows)))

    def _placed(self, log: JobLog, plan: Plan) -> list[int]:
        """The actor of each row: that of its parent, and for fresh seeds those with the fewest rows
        for their batch."""
        kinds, parents = plan.rows.kind.tolist(), plan.rows.parent.tolist()
        home = [
            None if kind == FRESH else log.actor[parent]
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
        return sum(len(log.open) for log in self._logs.values())

    def tick(self) -> list[Outcome]:
        """The outcomes that are ready; waits for the first actor that has some, never for the
        slowest."""
        self._go_on()
        if self.pending() and self.group.busy:
            self.group.listen(1.0)
            if self._failures:
                raise self._failures.pop()
            self._go_on()
        return self.arrived()

    def arrived(self) -> list[Outcome]:
        done, self._arrived = self._arrived, []
        return done

    def cancel(self, job: int) -> Outcome:
        if (log := self._logs.get(job)) is None:
            return merged(job, [])
        self._cancelling[job] = dict.fromkeys(log.actor[uid] for uid in log.open)
        for actor in list(self._cancelling[job]):
            self._cancel(actor, job)
        while any(part is None for part in self._cancelling[job].values()):
            self.group.listen(1.0)
        return merged(
            job, [part for part in self._cancelling.pop(job).values() if part is not None]
        )

    def _cancel(self, actor: int, job: int) -> None:
        def cancelled(answer: tuple[list[Outcome], Outcome]) -> None:
            arrived, outcome = answer
            self._completed(actor, arrived)
            self._rest(actor, outcome, cancelled=True)
            self._cancelling[job][actor] = outcome

        self.group.post(actor, Call(EngineActor.cancel, job), cancelled)

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

    def _rest(self, actor: int, outcome: Outcome, *, cancelled: bool = False) -> None:
        log = self._logs[outcome.job]
        part = log.part(outcome)
        self._credited += (
            begun(part, outcome, self.grid) if cancelled else part.cost - outcome.unspent
        )
        log.rest(outcome, cancelled=cancelled)
        self.sent[actor] -= len(part)

    # --- an actor has died ------------------------------------------------------------------------

    def _revived(self, actor: int) -> None:
        """Give a new actor the jobs of the dead one, and have it make its particles again."""
        start = Call(
            EngineActor.start,
            dict(self._prompts),
            self._following,
            self._gradient,
            dict(self._weights),
        )
        self.group.post(actor, start)
        remakes = [log.remake(job, actor) for job, log in self._logs.items()]
        if orders := [order for order in remakes if order is not None]:
            self.group.post(actor, Call(EngineActor.remake, orders))
        for job, parts in self._cancelling.items():
            if actor in parts and parts[actor] is None:
                self._cancel(actor, job)
