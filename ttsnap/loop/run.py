"""One run of the search loop: takes prompts up, asks, charges, submits, collects. See search.py for its promises."""

from __future__ import annotations

import dataclasses
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ttsnap.core.cost import Cost
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan, owned_gradients, resolve, unspent
from ttsnap.core.pricing import finish_cost
from ttsnap.core.protocols import Engine
from ttsnap.core.results import Event, Result
from ttsnap.core.spent import Usage
from ttsnap.core.table import ParticleTable
from ttsnap.core.validate import check_declared, check_idle, validate
from ttsnap.loop.budget import Budget, tightest
from ttsnap.loop.job import Job, Proposal
from ttsnap.loop.ledger import Ledger
from ttsnap.loop.report import report
from ttsnap.loop.spec import SearchSpec

Listener = Callable[[Event], None]


@dataclasses.dataclass
class Stopwatch:
    """The time of a run: `begin` is when it began by `clock`, in seconds; `deadline` is when it has to end."""

    clock: Callable[[], float]
    begin: float
    deadline: float = np.inf

    @property
    def seconds(self) -> float:
        return self.clock() - self.begin


class Run:
    """Takes prompts up as the engine has room, asks their algorithms, charges, submits, collects."""

    def __init__(
        self, prompts: Sequence[str], spec: SearchSpec, engine: Engine, watch: Stopwatch, on_event: Listener | None
    ) -> None:
        self.spec, self.engine, self.grid, self.rewards = spec, engine, engine.grid, len(engine.reward_names)
        self.watch, self.on_event = watch, on_event
        self._whole = finish_cost(0, False, self.grid, self.rewards, engine.price)
        self.cap = tightest(spec.budget, engine)
        self.task = self.cap.task(spec.keep, spec.shared)
        pot = Ledger(spec.budget.times(len(prompts)), engine.price) if spec.shared else None
        self.jobs = [self._job(i, prompt, pot) for i, prompt in enumerate(prompts)]
        self.active: list[Job] = []
        engine.start(prompts, spec.seed)

    def _job(self, index: int, prompt: str, pot: Ledger | None) -> Job:
        """What the prompt draws depends on itself and the seed alone, not on other prompts."""
        spec, price = self.spec, self.engine.price
        ledger = Ledger(spec.budget, price) if pot is None else Ledger(Budget(), price, pot)
        ledger.hold(self._whole)
        table = ParticleTable(self.grid.steps, self.rewards, spec.utility)
        rng = np.random.default_rng([spec.seed % 2**32, zlib.crc32(prompt.encode())])
        return Job(index, prompt, ledger, table, spec.algorithm.init(self.task), rng)

    def results(self, should_stop: Callable[[], bool]) -> list[Result]:
        """Run to the end, or until `should_stop`, and report."""
        with self.engine.meter() as meter:
            self._run(should_stop)
        usage = meter.summary() if meter is not None else Usage()
        return report(self.jobs, self.engine, self.spec.keep, self.watch.seconds, usage)

    # --- the loop -------------------------------------------------------------------------------------------

    def _run(self, should_stop: Callable[[], bool]) -> None:
        queue = deque(self.jobs)
        stopping = False
        while queue or self.active:
            while queue and (self.spec.shared or not self.active or self.engine.pending() < self.engine.capacity):
                job = queue.popleft()
                job.closing = stopping
                self.active.append(job)
                self._emit("start", job)
                if not self.spec.shared:
                    self._ask([job])
            ready = [job for job in self.active if not job.waiting]
            # Prompts that share a budget are asked in rounds, so that speed does not decide who gets it.
            if ready and (not self.spec.shared or len(ready) == len(self.active)):
                self._ask(ready)
            before = self.engine.nfe
            outcomes = self.engine.tick()
            if self.engine.nfe > before:
                self._emit("tick", None, nfe=self.engine.nfe - before)
            for outcome in outcomes:
                self._collect(outcome)
            asked = not stopping and should_stop()
            if asked or (not stopping and self._late(len(queue))):
                stopping = True
                self._wind_up()
                if asked:
                    queue.clear()

    def _ask(self, jobs: list[Job]) -> None:
        """Get the next move of each job and carry out what the ledgers afford, the most valuable first."""
        for job in jobs:
            if job.proposal is None:
                job.proposal = self._propose(job)
        if self.spec.shared:
            jobs = sorted(jobs, key=lambda job: (-job.value, job.prompt))
        top = max((job.value for job in jobs if job.value < np.inf), default=np.inf)
        for job in jobs:
            if self.spec.shared and job.value < top and self.engine.pending() >= self.engine.capacity:
                break  # the batch is full of moves worth more; this one keeps until the next round
            plan, job.state = (job.proposal.plan, job.proposal.state) if job.proposal else (None, job.state)
            job.proposal = None
            if plan is not None:
                job.rejected |= set(plan.reject.tolist())
            if plan is None or not len(plan) or not self._submit_prefix(job, plan):
                self._stop(job)

    def _propose(self, job: Job) -> Proposal:
        if job.closing:
            return Proposal(None, np.inf, job.state)
        left = self.task.allowance - self.cap.evaluations(job.ledger.spent)
        particles = job.particles.told(job.moved, left)
        move, state = self.spec.algorithm.step(job.state, particles, job.rng)
        if move is None:
            return Proposal(None, np.inf, state)
        if len(move):
            validate(move, particles, self.grid, self.spec.algorithm)
        plan = self._resolve(move, particles)
        check_declared(plan, self.spec.algorithm, drafter=self.task.draft_calls > 0)
        return Proposal(plan, float(move.value), state)

    def _resolve(self, move: Move, particles: Particles) -> Plan:
        return resolve(move, particles, self.grid, self.rewards, self.engine.price, self.spec.seed)

    def _submit_prefix(self, job: Job, plan: Plan) -> bool:
        """Submit as many rows of the plan, from the first on, as fit with what must be held back after them."""
        rows = len(plan)
        if not self._submit(job, plan):
            low, high = 0, rows
            while high - low > 1:
                middle = (low + high) // 2
                head = plan.head(middle)
                fits = job.ledger.affords(head.cost, self._reserve(head, job.particles))
                low, high = (middle, high) if fits else (low, middle)
            if low == 0:
                return False
            job.warnings.append(f"the budget afforded {low} of the {rows} rows of move {len(job.trace)}")
            self._submit(job, plan.head(low))
        job.moved = np.full(rows, -1)
        job.moved[: job.waiting] = plan.uid[: job.waiting]
        return True

    def _reserve(self, plan: Plan, particles: Particles) -> Cost:
        """What must be held back after a plan: the cost of finishing the nearest particle, until one is finished.

        The nearest may be one that the plan advances, one that rests, or a fresh seed.
        """
        rows, last = plan.rows, plan.rows.stop == self.grid.steps
        if np.count_nonzero(particles.finished) or np.count_nonzero(rows.score & last):
            return Cost()
        resting = particles.alive.copy()
        resting[rows.parent[rows.parent >= 0]] = False
        resting[plan.drop] = False
        step = np.concatenate([[0], rows.stop, particles.step[resting]])
        evaluated = rows.score & (plan.look.evaluations(rows.stop, self.grid) > 0) & ~last
        cached = np.concatenate([[False], evaluated, particles.cached[resting]])
        has_gradient = np.concatenate([np.zeros(1 + len(plan), bool), particles.has_gradient[resting]])
        return finish_cost(step, cached, self.grid, self.rewards, self.engine.price, has_gradient)

    def _stop(self, job: Job) -> None:
        """Nothing else is wanted or can be paid for: end, or finish the best particle from the reserve first."""
        if job.finished:
            self._end(job)
            return
        job.closing, job.proposal, particles = True, None, job.particles
        uids = np.flatnonzero(particles.alive)
        order = np.lexsort((-particles.step[uids], -particles.value(uids)))
        for uid in uids[order]:
            move = advance(particles, [uid], self.grid.steps)
            if self._submit(job, self._resolve(move, particles)):
                return
        if not self._submit(job, self._resolve(fresh(1, self.grid.steps), particles)):
            raise RuntimeError(f"nothing left to finish an image with: spent {job.ledger.spent} of {job.ledger}")

    def _submit(self, job: Job, plan: Plan) -> bool:
        """Charge for a plan and hand it to the engine; False, and nothing done, when the ledger does not afford it."""
        cost, particles = plan.cost, job.particles
        reserve = self._reserve(plan, particles)
        if not job.ledger.affords(cost, reserve):
            return False
        job.ledger.charge(cost, reserve)
        job.idle = job.idle + 1 if cost == Cost() else 0
        check_idle(job.idle, self.spec.algorithm)
        if (guided := self.engine.price.guided) is not None:
            owned = owned_gradients(plan, particles, guided.at)
        job.table.place(plan)
        if guided is not None:
            job.table.own(plan.uid, owned)
        if len(plan.drop):
            self.engine.drop(job.index, plan.drop.tolist())
            self._emit("drop", job, uids=tuple(plan.drop.tolist()))
        job.begin(plan)
        self._emit("move", job, uids=tuple(plan.uid.tolist()), nfe=cost.nfe, move=job.trace[-1])
        self.engine.submit(job.index, plan)
        return True

    def _collect(self, outcome: Outcome) -> None:
        job = self.jobs[outcome.job]
        job.take(outcome, self.grid.steps, self.spec.keep)
        if self.on_event is None or outcome.scores is None or outcome.images is None:
            return
        best = float(job.particles.value(job.ranking()[:1])[0]) if job.images else float("nan")
        kept = outcome.kept or [{}] * len(outcome.uids)
        columns = outcome.uids.tolist(), outcome.step.tolist(), outcome.scores.tolist()
        for uid, step, scores, image, more in zip(*columns, outcome.images, kept, strict=True):
            look = "" if step == self.grid.steps or job.plan is None else job.plan.look.at(step).name
            told = {"scores": tuple(scores), "image": image, "kept": more, "best": best}
            self._emit("score", job, uids=(uid,), step=step, look=look, **told)

    # --- stopping early ---------------------------------------------------------------------------------------

    def _late(self, queued: int) -> bool:
        """Whether only the time to finish one image for each prompt without one is left."""
        rates, watch = self.engine.price.seconds, self.watch
        if watch.deadline == np.inf or rates is None:
            return watch.clock() >= watch.deadline
        bare = [job for job in self.active if not job.finished]
        need = sum(rates.of(job.ledger.reserve) for job in bare) + queued * rates.of(self._whole)
        batches = -(-(len(bare) + queued) // max(1, self.engine.capacity // 2))
        need += rates.call * self.grid.nfe * batches
        return bool(watch.clock() + need >= watch.deadline)

    def _wind_up(self) -> None:
        """Cancel what runs, refund what did not run, and end each prompt with what it has."""
        for job in list(self.active):
            if job.closing:
                continue
            cancelled = self.engine.cancel(job.index)
            refund = self._unspent(job, cancelled)
            job.ledger.refund(refund)
            if job.trace:
                job.trace[-1]["refund"] = refund.counts()
            job.waiting = 0
            job.warnings.append("stopped early; the budget was not used up")
            self._stop(job)

    def _unspent(self, job: Job, cancelled: Outcome) -> Cost:
        """The part of a cancelled plan's cost that did not run. Records how far its rows got."""
        job.table.record(cancelled)
        if job.plan is None:
            return Cost()
        return unspent(job.plan, cancelled, job.particles, self.grid, self.rewards, self.engine.price)

    def _end(self, job: Job) -> None:
        job.ledger.hold(Cost())
        self.active.remove(job)
        self.engine.drop(job.index, range(len(job.particles)))
        if job.failures > 1:
            job.warnings.append(f"{job.failures} scores failed in all")
        self._emit("end", job)

    def _emit(self, kind: str, job: Job | None, **details: Any) -> None:
        if self.on_event is not None:
            index = job.index if job is not None else -1
            self.on_event(Event(kind, index, self.watch.seconds, **details))
