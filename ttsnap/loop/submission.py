"""Plans on their way to the engine: cut to what there is budget and time for, charged, and taken
back."""

from __future__ import annotations

import dataclasses

import numpy as np

from ttsnap.core.cost import Cost
from ttsnap.core.moves import Move
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan, owned_gradients, resolve, unspent
from ttsnap.core.protocols import Engine
from ttsnap.core.validate import check_idle
from ttsnap.loop.job import Job, Notice, Proposal
from ttsnap.loop.ledger import reserve_after
from ttsnap.loop.request import RunningRequest

_NONE = np.empty(0, int)


class Submission:
    """Charges the ledgers of jobs for what an engine is to do. Nothing else charges."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.grid, self.rewards = engine, engine.grid, len(engine.reward_names)
        self.requests: list[RunningRequest] = []
        self._of_job: dict[int, RunningRequest] = {}

    def _resolve(self, job: Job, move: Move, particles: Particles) -> Plan:
        seed = self._of_job[job.index].spec.seed
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
        part = request.part(job, plan, max(1, self.engine.capacity // 2))
        rows = min(
            part, request.rows_in_time(job, plan, reserve_after(plan, job.particles, self.engine))
        )
        if not rows or not (submitted := self._submit_prefix(job, plan.take(slice(rows)))):
            return False
        if not job.begun:
            job.moved = np.full(len(plan), -1)
        job.moved[job.begun : job.begun + submitted] = plan.uid[:submitted]
        job.begun += submitted
        if submitted == part < len(plan):
            rest = dataclasses.replace(plan.take(slice(part, None)), drop=_NONE, reject=_NONE)
            job.proposal = proposal._replace(plan=rest)
        else:
            job.move_ends()
        return True

    def _submit_prefix(self, job: Job, plan: Plan) -> int:
        """Submit the first rows of the plan, as many as fit with what must be held back after them;
        how many."""
        rows = len(plan)
        if self._submit(job, plan):
            return rows
        low, high = 0, rows
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
        request, cost, particles = self._of_job[job.index], plan.cost, job.particles
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

    def _recall(self, job: Job) -> None:
        """Take the rows of a prompt back from the engine, and refund what of them did not run."""
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

    def _collect(self, outcome: Outcome) -> None:
        request = self._of_job[outcome.job]
        job = next(job for job in request.active if job.index == outcome.job)
        job.take(outcome, self.grid.steps)
        request.tell_scores(job, outcome, self.engine)
