"""ClusterEngine: one search on many devices, an actor with a live engine on each.

To the loop it is an engine like any other. Particles live on actors, not prompts: placement.py says where rows go.
job_log.py knows how to make again what a dead actor had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ttsnap.cluster.actor import EngineActor
from ttsnap.cluster.actor_group import ActorGroup, Pool
from ttsnap.cluster.colocation import ColocatedRows, Copies, Copying, at_home, by_home, colocated, split_off
from ttsnap.cluster.job_log import JobLog
from ttsnap.cluster.merging import ClusterMeter, agreed, averaged, begun, merged
from ttsnap.cluster.messages import Call, Description
from ttsnap.cluster.placement import Placement
from ttsnap.core.cost import Cost, Price
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine
from ttsnap.engine.fair import FairShare

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
        self._copies = Copies(self._fetch)
        self._arrived: list[Outcome] = []
        self._cancelling: dict[int, dict[int, Outcome | None]] = {}
        self._credited = Cost()
        self.placement = Placement([SOME] * len(self.actors))

    def _describe(self, descriptions: Sequence[Description]) -> None:
        self._description = one = agreed(descriptions)
        self.grid, self.keep, self.draft_calls = one.grid, one.keep, one.draft_calls
        self.calibration_cost = one.calibration_cost
        if one.fair and self.placement.turns is None:
            self.placement.turns = FairShare()
        self.placement.batches = [one.batch_sizes.get("batch_size", SOME) for one in descriptions]

    # --- what it can do and what that costs -----------------------------------------------------------------------

    @property
    def offers(self) -> frozenset[Need]:
        return self._description.offers

    @property
    def price(self) -> Price:
        """With seconds as the slowest actor has them."""
        return self._description.price

    @property
    def capacity(self) -> int:
        return 2 * sum(self.placement.batches)

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

    # --- jobs -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._forget()
        self.group.ask(self.actors, Call(EngineActor.start))

    def admit(self, prompts: Sequence[Prompt]) -> None:
        first = self._following
        self._prompts |= dict(enumerate(prompts, first))
        self._following += len(prompts)
        try:
            self._describe(self.group.ask(self.actors, Call(EngineActor.admit, first, tuple(prompts))))
        except Exception:
            self._following = first
            self._prompts = {job: prompt for job, prompt in self._prompts.items() if job < first}
            self.group.postpone(self.actors, Call(EngineActor.retract, first))  # some actors may have these jobs
            raise

    def release(self, job: int) -> None:
        self._logs.pop(job, None)
        self._prompts.pop(job, None)
        self.placement.weights.pop(job, None)
        self.group.postpone(self.actors, Call(EngineActor.release, job))

    def weigh(self, job: int, weight: float) -> None:
        self.placement.weights[job] = weight
        self.group.postpone(self.actors, Call(EngineActor.weigh, job, weight))

    def submit(self, job: int, plan: Plan) -> None:
        log = self._logs.setdefault(job, JobLog())
        log.begin(plan)
        groups = colocated(job, plan, log.home)
        if len(self.actors) > 1:  # rows of devices that would be too full run elsewhere, from copies
            homed = at_home(groups, len(self.actors))
            surplus = self.placement.surplus(homed, len(plan) - sum(homed))
            for off in split_off(groups, plan, log.row, surplus, guided=self.price.guided is not None):
                self._copies.ask(log, off[0].sources, off, once=True)
        waiting = []
        for rows in groups:
            strangers = [uid for uid in rows.sources if log.home[uid] != rows.home]
            if strangers:
                self._copies.ask(log, strangers, [rows])
            else:
                waiting.append(rows)
        self._move(self.placement.add(waiting))

    def drop(self, job: int, uids: Sequence[int]) -> None:
        if (log := self._logs.get(job)) is None:
            return
        for actor, mine in by_home([uid for uid in uids if uid in log.home], log.home).items():
            self.group.postpone([actor], Call(EngineActor.drop, job, tuple(mine)))
        log.drop(uids)

    def pending(self) -> int:
        return sum(len(log.open) for log in self._logs.values())

    def tick(self) -> list[Outcome]:
        """The outcomes that are ready; waits for the first actor that has some, never for the slowest."""
        self._go_on()
        if self.pending() and self.group.busy:
            self.group.listen(1.0)
            self._go_on()
        return self.arrived()

    def arrived(self) -> list[Outcome]:
        done, self._arrived = self._arrived, []
        return done

    def cancel(self, job: int) -> Outcome:
        if (log := self._logs.get(job)) is None:
            return merged(job, [])
        # Waiting rows are sent first: every row is then on an actor, which knows how far it got.
        self._send(self.placement.recall(job))
        while self._copies.awaited(job):
            self.group.listen(1.0)
            self._send(self.placement.recall(job))
        self._cancelling[job] = dict.fromkeys(log.sent.values())
        for actor in list(self._cancelling[job]):
            self._cancel(actor, job)
        while any(part is None for part in self._cancelling[job].values()):
            self.group.listen(1.0)
        return merged(job, [part for part in self._cancelling.pop(job).values() if part is not None])

    def _cancel(self, actor: int, job: int) -> None:
        def cancelled(outcome: Outcome) -> None:
            self._rest(actor, outcome, cancelled=True)
            self._cancelling[job][actor] = outcome

        self.group.post(actor, Call(EngineActor.cancel, job), cancelled)

    # --- rows on their way ----------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Send what there is room for, and keep actors with rows at work."""
        sends, moves = self.placement.next()
        self._send(sends)
        self._move(moves)
        for actor, sent in enumerate(self.placement.sent):
            if sent:
                self.group.post_ahead(actor, Call(EngineActor.tick), partial(self._completed, actor))

    def _send(self, sends: Sequence[tuple[int, ColocatedRows]]) -> None:
        """Rows to actors, those of one job in one part of its plan."""
        parts: dict[tuple[int, int], list[ColocatedRows]] = {}
        for actor, rows in sends:
            parts.setdefault((actor, rows.job), []).append(rows)
        for (actor, job), groups in parts.items():
            log = self._logs[job]
            uids = [uid for rows in groups for uid in rows.uids]
            log.send(uids, actor)
            part = log.plans[-1].take(np.sort([log.row[uid] for uid in uids]))
            copies = {id(data): data for rows in groups for data in rows.copies}
            self.group.postpone([actor], Call(EngineActor.submit, job, part, tuple(copies.values())))

    def _move(self, moves: Sequence[ColocatedRows]) -> None:
        """Fetch what these rows start from, so that they can go elsewhere."""
        for rows in moves:
            rows.home = None
            log = self._logs[rows.job]
            self._copies.ask(log, [uid for uid in rows.sources if uid in log.home], [rows])

    def _fetch(self, copying: Copying) -> None:
        def heard(data: bytes) -> None:
            for rows in self._copies.heard(copying, data):
                self.placement.arrived(rows)

        call = Call(EngineActor.copy, copying.job, copying.uids, copying.drop)
        self.group.post(copying.actor, call, heard)

    def _completed(self, actor: int, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._rest(actor, outcome)
            self._arrived.append(outcome)

    def _rest(self, actor: int, outcome: Outcome, *, cancelled: bool = False) -> None:
        log = self._logs[outcome.job]
        part = log.plans[-1].take(np.array([log.row[uid] for uid in outcome.uids.tolist()], int))
        self._credited += begun(part, outcome, self.grid) if cancelled else part.cost - outcome.unspent
        log.rest(outcome, cancelled=cancelled)
        self.placement.done(actor, len(part))

    # --- an actor has died ----------------------------------------------------------------------------------------

    def _revived(self, actor: int) -> None:
        """Give a new actor the jobs of the dead one, and have it make its particles again."""
        weights = dict(self.placement.weights)
        start = Call(EngineActor.start, dict(self._prompts), self._following, self._gradient, weights)
        self.group.post(actor, start)
        more: dict[int, set[int]] = {}
        for rows in self._copies.given_up(actor):
            more.setdefault(rows.job, set()).update(rows.uids)
        remakes = [log.remake(job, actor, more.get(job, ())) for job, log in self._logs.items()]
        if orders := [order for order in remakes if order is not None]:
            self.group.post(actor, Call(EngineActor.remake, orders))
        for job, uids in more.items():
            self._logs[job].send(uids, actor)
            self.placement.sent[actor] += len(uids)
        self._copies.ask_again(actor)
        for job, parts in self._cancelling.items():
            if actor in parts and parts[actor] is None:
                self._cancel(actor, job)
