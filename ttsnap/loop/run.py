"""The search loop: asks, charges, submits and collects, for all requests on one engine. Its
promises: search.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttsnap.core.cost import Cost
from ttsnap.core.memory import lacks_memory
from ttsnap.core.moves import advance, fresh
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine, EngineLost, JobsLost
from ttsnap.core.validate import check_declared, validate
from ttsnap.loop.by_hand import Remainder, without
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.job import Job, Notice, Proposal
from ttsnap.loop.request import FOUND, SHORT, STOPPED, TIMED, Listener, LoopSearch, RunningRequest
from ttsnap.loop.submission import Submission

MOST_ANEW = 30
"""How often jobs begin anew before one of them ends."""
ASKED = 10
"""How often an algorithm is asked that wants to go on with what a person finished."""


class Run(Submission):
    """All searches on one engine: requests may come and go while it runs, and rows of all of them
    share its batches.

    Whoever owns it calls `turn` while it is `busy`. What a request finds does not depend on the
    others.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._admitted = 0
        self._paid = Cost()
        """By jobs that are at their end."""
        self._begun_anew = 0
        """How often since the last job ended."""
        self.lost = False
        """Whether the engine cannot go on; nothing can be added then."""
        engine.start()

    def add(
        self,
        prompts: Sequence[Prompt],
        spec: LoopSearch,
        watch: RequestClock,
        *listeners: Listener,
        eager: bool = False,
    ) -> RunningRequest:
        """Queue these prompts, for a specification that was `prepared` for this engine (search.py).

        eager: as of RunningRequest.

        ValueError for prompts that its rewards or its model cannot read; nothing is queued then.
        EngineLost where the engine cannot go on; all other requests end then, with what they have.
        """
        request = RunningRequest.of(prompts, spec, self.engine, watch, listeners, self._admitted)
        request.eager = eager
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
        """One round: take prompts up, ask their algorithms, charge and submit; then one batch of
        the engine.

        Where the engine is lost, all requests end with what they have; so they do where memory is
        too short for one row more, but where nothing has an image: then that is raised."""
        try:
            for request in list(self.requests):
                for job in [job for job in request.active if job.said]:
                    self._lead(job)
                self._take_up(request)
                ready = [job for job in request.active if not job.waiting]
                # Prompts that share a budget are asked in rounds, so that speed does not decide who
                # gets it.
                if ready and (not request.spec.shared or len(ready) == len(request.active)):
                    self._ask(request, ready)
            self._tick()
            for request in list(self.requests):
                for job in [job for job in request.active if job.ends]:
                    self._recall(job)
                    job.closing = True
                    job.ended = FOUND
                    self._end(job)
                if request.late:
                    self._wind_up(request, TIMED)
        except JobsLost as lost:
            self._begin_anew(lost)
        except EngineLost as lost:
            self._end_all(str(lost))
        except Exception as error:
            if not lacks_memory(error) or not self._end_short(error):
                raise
        self.requests = [request for request in self.requests if not request.done]

    def stop(self, request: RunningRequest) -> None:
        """End a request early: each prompt with its best image. One is finished first where there
        is none.

        Prompts that were not taken up yet end without an image. What was charged and did not run is
        refunded.
        """
        if request.ended == STOPPED:
            return
        try:
            self._forget_queue(request)
            self._wind_up(request, STOPPED)
        except JobsLost as lost:
            self._begin_anew(lost)
        except EngineLost as lost:
            self._end_all(str(lost))

    def cancel(self, request: RunningRequest) -> None:
        """End a request at once, as nobody waits for it any more: no image is finished for it. What
        did not run is refunded. Where the engine turns out to be lost, all requests end with what
        they have."""
        request.stopping = True
        cancelled = Notice("cancelled; no further image was finished")
        try:
            self._forget_queue(request)
            for job in list(request.active):
                self._recall(job)
                job.warnings.append(cancelled)
                self._end(job)
        except JobsLost as lost:
            self._give_up(request, cancelled)
            self._begin_anew(lost)
        except EngineLost as lost:
            self._end_all(str(lost))
        self.requests = [other for other in self.requests if other is not request]

    def _tick(self) -> None:
        """One batch of the engine, and what came of it."""
        engine = self.engine
        nfe = self.engine.nfe
        ran = self.engine.ran
        pending = max(1, self.engine.pending())
        paced = [
            (one, one.pace, min(1.0, one.waiting / pending)) for one in self.requests if one.pace
        ]
        outcomes = engine.tick()
        if engine.nfe > nfe:
            for request in self.requests:
                request.tell("tick", None, nfe=engine.nfe - nfe)
        for outcome in outcomes:
            self._collect(outcome)
        if paced and engine.timings:  # which waits for the device
            for request, pace, share in paced:
                pace.passed(engine.ran - ran, share, waits=request.waiting > 0)

    # --- the loop ---------------------------------------------------------------------------------

    def _take_up(self, request: RunningRequest) -> None:
        """Take up as many of its prompts as the engine has room for; all at once where they share a
        budget.

        One at least is taken up, so that no other request keeps it out.
        """
        shared = request.spec.shared
        while request.queue and (
            shared or not request.active or self.engine.pending() < self.engine.capacity
        ):
            job = request.queue.popleft()
            job.closing = request.stopping
            request.active.append(job)
            request.tell("start", job, led=request)
            if not shared:
                self._ask(request, [job])

    def _ask(self, request: RunningRequest, jobs: list[Job]) -> None:
        """Get the next move of each job and carry out what the ledgers afford, the most valuable
        first."""
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
            proposal = job.proposal
            job.proposal = None
            if proposal is not None:
                job.state = proposal.state
            if proposal is not None and self._submit_part(request, job, proposal):
                continue
            if not job.begun:
                self._stop(job)
            else:  # some rows of its move are done, and there is nothing left for the others
                job.move_ends()
                self._ask(request, [job])

    def _propose(self, request: RunningRequest, job: Job) -> Proposal:
        if job.closing:
            return Proposal(None, np.inf, job.state)
        algorithm = request.spec.algorithm
        state = job.state
        moved = job.moved
        for _ in range(ASKED if job.led else 1):
            if job.led and len(moved) and (moved < 0).all():
                return Proposal(None, np.inf, state)  # all that it began was dropped
            particles = job.particles.after_move(moved, request.left(job))
            move, state = algorithm.step(state, particles, job.rng)
            if move is None:
                return Proposal(None, np.inf, state)
            left = Remainder(move, np.arange(len(move)), np.full(len(move), -1))
            if job.led:
                left = without(move, particles, job.dropped)
            moved = left.moved
            if len(left.move):
                validate(left.move, particles, self.grid, algorithm)
                break
        plan = self._resolve(job, left.move, particles)
        check_declared(plan, algorithm, drafter=request.task.draft_calls > 0)
        return Proposal(plan, float(left.move.value), state, left.at, moved)

    def _stop(self, job: Job) -> None:
        """Nothing else is wanted or can be paid for: end, or finish the best particle first, from
        the reserve or where all images so far are refused. Time that is left for images goes to as
        many as it is enough for."""
        request = self._of_job[job.index]
        particles = job.particles
        end = self.grid.steps
        must = not job.finished or (job.goes_on and not request.stopping)
        if not must and not request.uses_time:
            self._end(job)
            return
        job.closing = True
        job.proposal = None
        # who a person dropped is finished where nothing else can be
        uids = job.unfinished(nearest=bool(request.ended))
        kept = uids[~np.isin(uids, job.dropped)]
        if request.uses_time:
            many = (
                fresh(self.engine.capacity, end) if not len(kept) else advance(particles, kept, end)
            )
            plan = self._resolve(job, many, particles)
            rows = request.rows_in_time(job, plan, Cost())
            if rows and self._submit_prefix(job, plan.take(slice(rows))):
                return
        one = fresh(1, end)
        single = [*(advance(particles, [uid], end) for uid in kept), one] if must else []
        single += [advance(particles, [uid], end) for uid in np.setdiff1d(uids, kept) if must]
        if any(self._submit(job, self._resolve(job, move, particles)) for move in single):
            return
        if not job.finished:
            raise RuntimeError(
                f"nothing left to finish an image with: spent {job.ledger.spent} of {job.ledger}"
            )
        self._end(job)

    # --- stopping early ---------------------------------------------------------------------------

    def _wind_up(self, request: RunningRequest, why: str) -> None:
        """Cancel what runs, refund what did not run, and end each prompt with what it has, or still
        has time for."""
        request.stopping = True
        request.ended = why
        jobs = [job for job in request.active if not job.closing or job.waiting > 1]
        for job in jobs:
            self._recall(job)
            if why == STOPPED or request.watch.limit:
                said = "stopped early" if why == STOPPED else request.time_is_up
                job.warnings.append(Notice(f"{said}; the budget was not used up"))
        for job in jobs:
            self._stop(job)

    def _end_all(self, why: str) -> None:
        """The engine is lost: there is nothing to tell it, and no more to hear from it."""
        self.lost = True
        for request in self.requests:
            self._give_up(
                request, Notice("the engine is lost; the search ends with what it has", why)
            )
        self.requests = []

    def _give_up(self, request: RunningRequest, why: Notice) -> None:
        """End a request without its engine."""
        for job in request.active:
            job.warnings.append(why)
            job.ledger.close()
            job.settle()
            request.tell("end", job)
        request.active.clear()
        request.queue.clear()

    def _begin_anew(self, lost: JobsLost) -> None:
        """A part of the engine broke down: prompts that are not at their end begin again."""
        self._begun_anew += 1
        requests = [request for request in self.requests if not request.done]
        repeated = [job for request in requests for job in request.repeated]
        ended = [job.ledger.spent for job in repeated if job.index not in self._of_job]
        self._paid = self._paid - Cost().plus(*ended)
        try:
            if self._begun_anew > MOST_ANEW:
                raise EngineLost(f"{lost}, {MOST_ANEW} times before a prompt was done")
            self.engine.begin_anew(self._paid)
            self._of_job.clear()
            self._admitted = 0
            for request in requests:
                request.begin_anew(self._admitted)
                self._of_job |= {job.index: request for job in request.queue}
                self._admitted += len(request.queue)
                self.engine.admit([job.prompt for job in request.queue])
        except EngineLost as why:
            self._end_all(str(why))

    def _end_short(self, error: Exception) -> bool:
        """No row fits into memory any more: all end with what is finished, and what did not run is
        refunded. False, and nothing done, where nothing is finished."""
        for outcome in self.engine.arrived():
            self._collect(outcome)
        if not any(job.finished for request in self.requests for job in request.jobs):
            return False
        self.lost = True
        for request in self.requests:
            request.ended = SHORT
            self._forget_queue(request)
        for job in [job for request in self.requests for job in request.active]:
            self._recall(job)
            job.warnings.append(
                Notice("memory ran out; the search ends with what it has", str(error))
            )
            self._end(job)
        return True

    def _forget_queue(self, request: RunningRequest) -> None:
        """Prompts that were not taken up yet never are."""
        while request.queue:
            self._release(request.queue.popleft())

    def _end(self, job: Job) -> None:
        request = self._of_job[job.index]
        request.active.remove(job)
        job.ended = request.ended or job.ended or TIMED * request.uses_time
        if job.failures > 1:
            job.warnings.append(Notice(f"{job.failures} scores failed in all"))
        job.settle()
        self._release(job)
        request.tell("end", job)

    def _release(self, job: Job) -> None:
        job.ledger.close()
        self._paid = self._paid + job.ledger.spent
        self._begun_anew = 0
        self.engine.release(job.index)
        del self._of_job[job.index]
