"""The search loop: asks, charges, submits and collects, for all requests on one engine. Its promises: search.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttsnap.core.cost import Cost
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan, owned_gradients, resolve, unspent
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine, EngineLost
from ttsnap.core.validate import check_declared, check_idle, validate
from ttsnap.loop.job import Job, Notice, Proposal
from ttsnap.loop.ledger import reserve_after
from ttsnap.loop.request import Listener, RequestClock, RunningRequest, SearchSpec, request_of


class Run:
    """All searches on one engine: requests may come and go while it runs, and rows of all of them share its batches.

    Whoever owns it calls `turn` while it is `busy`. What a request finds does not depend on the others.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.grid, self.rewards = engine, engine.grid, len(engine.reward_names)
        self.requests: list[RunningRequest] = []
        self._of_job: dict[int, RunningRequest] = {}
        self._admitted = 0
        self.lost = False
        """Whether the engine cannot go on; nothing can be added then."""
        engine.start()

    def add(
        self, prompts: Sequence[Prompt], spec: SearchSpec, watch: RequestClock, listener: Listener | None = None
    ) -> RunningRequest:
        """Queue these prompts, for a specification that was `prepared` for this engine (search.py).

        ValueError for prompts that its rewards or its model cannot read; nothing is queued then. EngineLost where the
        engine cannot go on; all other requests end then, with what they have.
        """
        request = request_of(prompts, spec, self.engine, watch, listener, self._admitted)
        try:
            self.engine.admit(prompts)
        except EngineLost as lost:
            self._end_all(str(lost))
            raise
        self._admitted += len(prompts)
        self._of_job |= {job.index: request for job in request.jobs}
        self.requests.append(request)
        return request

    @property
    def busy(self) -> bool:
        """Whether some request is not done."""
        return bool(self.requests)

    def turn(self) -> None:
        """One round: take prompts up, ask their algorithms, charge and submit; then one batch of the engine.

        Where the engine is lost, all requests end with what they have."""
        try:
            for request in list(self.requests):
                self._take_up(request)
                ready = [job for job in request.active if not job.waiting]
                # Prompts that share a budget are asked in rounds, so that speed does not decide who gets it.
                if ready and (not request.spec.shared or len(ready) == len(request.active)):
                    self._ask(request, ready)
            before = self.engine.nfe
            outcomes = self.engine.tick()
            if self.engine.nfe > before:
                for request in self.requests:
                    request.tell("tick", None, nfe=self.engine.nfe - before)
            for outcome in outcomes:
                self._collect(outcome)
            for request in list(self.requests):
                if not request.stopping and request.late(self.engine):
                    self._wind_up(request)
        except EngineLost as lost:
            self._end_all(str(lost))
        self.requests = [request for request in self.requests if not request.done]

    def stop(self, request: RunningRequest) -> None:
        """End a request early: each prompt with its best image. One is finished first where there is none.

        Prompts that were not taken up yet end without an image. What was charged and did not run is refunded.
        """
        if request.stopping:
            return
        try:
            self._wind_up(request)
            self._forget_queue(request)
        except EngineLost as lost:
            self._end_all(str(lost))

    def cancel(self, request: RunningRequest) -> None:
        """End a request at once, as nobody waits for it any more: no image is finished for it. What did not run is
        refunded. Where the engine turns out to be lost, all requests end with what they have."""
        request.stopping = True
        try:
            self._forget_queue(request)
            for job in list(request.active):
                self._recall(job)
                job.warnings.append(Notice("cancelled; no further image was finished"))
                self._end(job)
        except EngineLost as lost:
            self._end_all(str(lost))
        self.requests = [other for other in self.requests if other is not request]

    # --- the loop -------------------------------------------------------------------------------------------

    def _take_up(self, request: RunningRequest) -> None:
        """Take up as many of its prompts as the engine has room for; all at once where they share a budget.

        One at least is taken up, so that no other request keeps it out.
        """
        shared = request.spec.shared
        while request.queue and (shared or not request.active or self.engine.pending() < self.engine.capacity):
            job = request.queue.popleft()
            job.closing = request.stopping
            request.active.append(job)
            request.tell("start", job)
            if not shared:
                self._ask(request, [job])

    def _ask(self, request: RunningRequest, jobs: list[Job]) -> None:
        """Get the next move of each job and carry out what the ledgers afford, the most valuable first."""
        shared = request.spec.shared
        for job in jobs:
            if job.proposal is None:
                job.proposal = self._propose(request, job)
        if shared:
            jobs = sorted(jobs, key=lambda job: (-job.value, job.prompt.read))
        top = max((job.value for job in jobs if job.value < np.inf), default=np.inf)
        for job in jobs:
            if shared and job.value < top and self.engine.pending() >= self.engine.capacity:
                break  # the batch is full of moves worth more; this one keeps until the next round
            plan, job.state = (job.proposal.plan, job.proposal.state) if job.proposal else (None, job.state)
            job.proposal = None
            if plan is not None:
                job.rejected |= set(plan.reject.tolist())
            if plan is None or not len(plan) or not self._submit_prefix(job, plan):
                self._stop(job)

    def _propose(self, request: RunningRequest, job: Job) -> Proposal:
        if job.closing:
            return Proposal(None, np.inf, job.state)
        algorithm, task = request.spec.algorithm, request.task
        left = task.allowance - request.cap.evaluations(job.ledger.spent)
        particles = job.particles.after_move(job.moved, left)
        move, state = algorithm.step(job.state, particles, job.rng)
        if move is None:
            return Proposal(None, np.inf, state)
        if len(move):
            validate(move, particles, self.grid, algorithm)
        plan = self._resolve(job, move, particles)
        check_declared(plan, algorithm, drafter=task.draft_calls > 0)
        return Proposal(plan, float(move.value), state)

    def _resolve(self, job: Job, move: Move, particles: Particles) -> Plan:
        seed = self._of_job[job.index].spec.seed
        return resolve(move, particles, self.grid, self.rewards, self.engine.price, seed)

    def _submit_prefix(self, job: Job, plan: Plan) -> bool:
        """Submit the first rows of the plan, as many as fit with what must be held back after them."""
        rows = len(plan)
        if not self._submit(job, plan):
            low, high = 0, rows
            while high - low > 1:
                middle = (low + high) // 2
                head = plan.take(slice(middle))
                fits = job.ledger.affords(head.cost, reserve_after(head, job.particles, self.engine))
                low, high = (middle, high) if fits else (low, middle)
            if low == 0:
                return False
            job.warnings.append(Notice(f"the budget afforded {low} of the {rows} rows of move {len(job.trace)}"))
            self._submit(job, plan.take(slice(low)))
        job.moved = np.full(rows, -1)
        job.moved[: job.waiting] = plan.uid[: job.waiting]
        return True

    def _stop(self, job: Job) -> None:
        """Nothing else is wanted or can be paid for: end, or finish the best particle first, from the reserve or where
        all images so far are refused."""
        if job.finished and (self._of_job[job.index].stopping or not job.goes_on):
            self._end(job)
            return
        job.closing, job.proposal, particles = True, None, job.particles
        uids = np.flatnonzero(particles.alive & ~particles.finished)
        order = np.lexsort((-particles.step[uids], -particles.value(uids)))
        for uid in uids[order]:
            move = advance(particles, [uid], self.grid.steps)
            if self._submit(job, self._resolve(job, move, particles)):
                return
        if self._submit(job, self._resolve(job, fresh(1, self.grid.steps), particles)):
            return
        if job.finished:
            self._end(job)
        else:
            raise RuntimeError(f"nothing left to finish an image with: spent {job.ledger.spent} of {job.ledger}")

    def _submit(self, job: Job, plan: Plan) -> bool:
        """Charge for a plan and hand it to the engine; False, and nothing done, when the ledger does not afford it."""
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

    def _collect(self, outcome: Outcome) -> None:
        request = self._of_job[outcome.job]
        job = request.jobs[outcome.job - request.jobs[0].index]
        job.take(outcome, self.grid.steps, request.spec.keep)
        if request.listener is None or outcome.scores is None or outcome.images is None:
            return
        first = job.ranking()[:1]
        best = float(job.particles.value(first)[0]) if first else float("nan")
        kept = outcome.kept or [{}] * len(outcome.uids)
        calls = self.engine.price.calls(self.rewards)
        columns = outcome.uids.tolist(), outcome.step.tolist(), outcome.scores.tolist()
        for uid, step, scores, picture, more in zip(*columns, outcome.images, kept, strict=True):
            look = "" if step == self.grid.steps or job.plan is None else job.plan.look.at(step).name
            details = {"scores": tuple(scores), "picture": picture, "kept": more, "best": best, "reward_calls": calls}
            request.tell("score", job, uids=(uid,), step=step, look=look, **details)

    # --- stopping early ---------------------------------------------------------------------------------------

    def _wind_up(self, request: RunningRequest) -> None:
        """Cancel what runs, refund what did not run, and end each prompt with what it has."""
        request.stopping = True
        for job in list(request.active):
            if job.closing:
                continue
            self._recall(job)
            job.warnings.append(Notice("stopped early; the budget was not used up"))
            self._stop(job)

    def _recall(self, job: Job) -> None:
        """Take the rows of a prompt back from the engine, and refund what of them did not run."""
        cancelled = self.engine.cancel(job.index)
        for outcome in self.engine.arrived():
            self._collect(outcome)
        job.table.record(cancelled)  # how far its rows got
        refund = Cost()
        if job.plan is not None:
            refund = unspent(job.plan, cancelled, job.particles, self.grid, self.rewards, self.engine.price)
        if cancelled.begun is not None:  # a seed whose draft was never made is no start for a finish
            job.table.drop(never := cancelled.uids[~cancelled.begun])
            self.engine.drop(job.index, never.tolist())
        job.ledger.refund(refund)
        if job.trace:
            job.trace[-1]["refund"] = refund.counts()
        job.waiting = 0

    def _end_all(self, why: str) -> None:
        """The engine is lost: there is nothing to tell it, and no more to hear from it."""
        self.lost = True
        for request in self.requests:
            for job in request.active:
                job.warnings.append(Notice("the engine is lost; the search ends with what it has", why))
                job.ledger.close()
                job.settle(request.spec.keep)
                request.tell("end", job)
            request.active.clear()
            request.queue.clear()
        self.requests = []

    def _forget_queue(self, request: RunningRequest) -> None:
        """Prompts that were not taken up yet never are."""
        while request.queue:
            self._release(request.queue.popleft())

    def _end(self, job: Job) -> None:
        request = self._of_job[job.index]
        request.active.remove(job)
        if job.failures > 1:
            job.warnings.append(Notice(f"{job.failures} scores failed in all"))
        job.settle(request.spec.keep)
        self._release(job)
        request.tell("end", job)

    def _release(self, job: Job) -> None:
        job.ledger.close()
        self.engine.release(job.index)
        del self._of_job[job.index]
