"""Plans on their way to the engine: cut to what there is budget and time for, charged, and taken
back."""

from __future__ import annotations

import dataclasses

import numpy as np

from ttsnap.core.cost import Cost
from ttsnap.core.moves import CONTINUE, Move
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan, owned_gradients, resolve, unspent
from ttsnap.core.protocols import Engine
from ttsnap.core.results import DROP, FINISH
from ttsnap.core.validate import check_idle
from ttsnap.loop.by_hand import alone, of, open_ones, resumed
from ttsnap.loop.job import Job, Notice, Proposal
from ttsnap.loop.ledger import reserve_after
from ttsnap.loop.request import RunningRequest

_NONE = np.empty(0, int)
NOT_PAID = {
    DROP: "the candidate of seed {} goes on, as the budget pays for no other image",
    FINISH: "the candidate of seed {} was not finished at once, as the budget does not pay for it",
}
"""Of commands that the budget does not allow."""


class Submission:
    """Charges the ledgers of jobs for what an engine is to do. Nothing else charges."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.grid = engine.grid
        self.rewards = len(engine.reward_names)
        self.requests: list[RunningRequest] = []
        self._of_job: dict[int, RunningRequest] = {}

    def _resolve(self, job: Job, move: Move, particles: Particles) -> Plan:
        seed = self._of_job[job.index].spec.seed
        if job.by_hand:
            drop = np.setdiff1d(np.append(move.drop, job.dropped), move.rows.parent)
            move = dataclasses.replace(move, drop=drop)
        return resolve(move, particles, self.grid, self.rewards, self.engine.price, seed)

    def _submit_part(self, request: RunningRequest, job: Job, proposal: Proposal) -> bool:
        """Submit the first rows of a proposal, as many as there is time and budget for; False where
        that is none.

        Rows that are begun later stay proposed.
        """
        if (plan := proposal.plan) is not None:
            job.rejected |= set(plan.reject.tolist())
        if not plan:
            return False
        batch = max(1, self.engine.capacity // 2)
        waits = request.in_parts and alone(plan) and not self._interruptible(plan)
        part = batch if waits else request.part(job, plan, batch)
        rows = min(
            part, request.rows_in_time(job, plan, reserve_after(plan, job.particles, self.engine))
        )
        if not rows or not (submitted := self._submit_prefix(job, plan.take(slice(rows)))):
            return False
        if not job.begun:
            job.moved = proposal.moved.copy()
        job.moved[proposal.at[:submitted]] = plan.uid[:submitted]
        job.begun += submitted
        if submitted == part < len(plan):
            rest = dataclasses.replace(plan.take(slice(part, None)), drop=_NONE, reject=_NONE)
            job.proposal = proposal._replace(plan=rest, at=proposal.at[part:])
        else:
            job.move_ends()
        return True

    def _submit_prefix(self, job: Job, plan: Plan) -> int:
        """Submit the first rows of the plan, as many as fit with what must be held back after them;
        how many."""
        rows = len(plan)
        if self._submit(job, plan):
            return rows
        low = 0
        high = rows
        while high - low > 1:
            middle = (low + high) // 2
            head = plan.take(slice(middle))
            fits = job.ledger.affords(head.cost, reserve_after(head, job.particles, self.engine))
            low, high = (middle, high) if fits else (low, middle)
        job.ended = job.ledger.reached(plan.cost)
        if low:
            job.warnings.append(
                Notice(f"the budget afforded {low} of the {rows} rows of move {len(job.trace)}")
            )
            self._submit(job, plan.take(slice(low)))
        return low

    def _submit(self, job: Job, plan: Plan) -> bool:
        """Charge for a plan and hand it to the engine; False, and nothing done, when the ledger
        does not afford it."""
        request = self._of_job[job.index]
        cost = plan.cost
        particles = job.particles
        reserve = reserve_after(plan, particles, self.engine)
        if not job.ledger.affords(cost, reserve):
            return False
        job.ledger.charge(cost, reserve)
        job.idle = job.idle + 1 if cost == Cost() else 0
        check_idle(job.idle, request.spec.algorithm)
        if (guided := self.engine.price.guided) is not None:
            owned = owned_gradients(plan, particles, guided.at)
        job.table.place(plan)
        if request.pace is not None:
            request.pace.ahead = request.pace.ahead + request.pace.work(plan)
        if guided is not None:
            job.table.own(plan.uid, owned)
        if len(plan.drop):
            self.engine.drop(job.index, plan.drop.tolist())
            request.tell("drop", job, uids=tuple(plan.drop.tolist()))
        job.begin(plan)
        nfe = self.engine.price.evaluations(cost)
        request.tell("move", job, uids=tuple(plan.uid.tolist()), nfe=nfe, move=job.trace[-1])
        self.engine.submit(job.index, plan)
        return True

    def _lead(self, job: Job) -> None:
        """Carry out what a person said of candidates. What is under way is taken back, and goes on
        from where it is, without who is dropped, and behind who is finished; or it is through
        first, where it is not interruptible."""
        plan = job.plan if job.waiting else None
        back = None
        if plan is not None and not self._interruptible(plan):
            return
        said = open_ones([job.said.popleft() for _ in range(len(job.said))], job.particles)
        if not said or job.closing:
            return
        if plan is not None:
            back = self._recall(job)
        job.led, job.by_hand = True, open_ones([*job.by_hand, *said], job.particles)
        following = self._following(job, plan, back)
        if job.proposal is not None:
            job.proposal = job.still_proposed(job.proposal)
        gone = of(DROP, job.by_hand)
        submitted = self._submit_prefix(job, following) if following else 0
        job.moved[np.isin(job.moved, [*gone, *following.uid[submitted:]])] = -1

    def _interruptible(self, plan: Plan) -> bool:
        """Whether its rows can be taken back, to go on later. Children share what they begin with,
        and seeds whose draft was not made, or their group's, would be given up."""
        plain = self.engine.price.start.plain
        return alone(plan) if plain else bool((plan.rows.kind == CONTINUE).all())

    def _following(self, job: Job, plan: Plan | None, back: Outcome | None) -> Plan:
        """What commands leave of a plan, whose rows were taken back, and who is finished before.
        Commands that the budget does not pay for are taken off, with a notice."""
        said = job.by_hand
        particles = job.particles
        while True:
            following = self._resolve(job, resumed(said, plan, back, particles), particles)
            first = following.take(slice(max(1, len(of(FINISH, said)))))
            reserve = reserve_after(first, particles, self.engine)
            if not (said and first) or job.ledger.affords(first.cost, reserve):
                return following
            verb, uid = said.pop()
            job.warnings.append(Notice(NOT_PAID[verb].format(particles.seed[uid])))

    def _recall(self, job: Job) -> Outcome:
        """Take the rows of a prompt back from the engine, and refund what of them did not run; how
        far they got."""
        cancelled = self.engine.cancel(job.index)
        for outcome in self.engine.arrived():
            self._collect(outcome)
        job.table.record(cancelled)  # how far its rows got
        refund = Cost()
        if job.plan is not None:
            refund = unspent(
                job.plan, cancelled, job.particles, self.grid, self.rewards, self.engine.price
            )
        if cancelled.begun is not None:  # a seed that never began is no start for a finish
            job.table.forget(never := cancelled.uids[~cancelled.begun])
            self.engine.drop(job.index, never.tolist())
        job.take_back(refund)
        request = self._of_job[job.index]
        if request.pace is not None:
            request.pace.returned(refund, waits=request.waiting > 0)
        return cancelled

    def _collect(self, outcome: Outcome) -> None:
        request = self._of_job[outcome.job]
        job = next(job for job in request.active if job.index == outcome.job)
        job.take(outcome, self.grid.steps)
        request.tell_scores(job, outcome, self.engine)
