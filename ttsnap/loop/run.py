"""One run of the search loop: the jobs, what they wait for, and every charge. See search.py for the promises."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.cost import Cost
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles, Utility
from ttsnap.core.plans import Plan, owned_gradients, resolve, unspent
from ttsnap.core.pricing import finish_cost
from ttsnap.core.protocols import Algorithm, Engine
from ttsnap.core.results import Candidate, Event, Result
from ttsnap.core.table import ParticleTable
from ttsnap.core.validate import check_idle, validate
from ttsnap.loop.budget import Budget, in_evaluations, task_of
from ttsnap.loop.ledger import Ledger

logger = logging.getLogger(__name__)
Listener = Callable[[Event], None]


class Proposal(NamedTuple):
    """What an algorithm wants next, None for nothing more; what that is worth; and its state then."""

    plan: Plan | None
    value: float
    state: Any


@dataclasses.dataclass(eq=False)
class Job:
    """One prompt under way."""

    index: int
    prompt: str
    ledger: Ledger
    table: ParticleTable
    state: Any
    rng: np.random.Generator
    waiting: int = 0
    proposal: Proposal | None = None
    pending: Plan | None = None
    moved: IntArray = dataclasses.field(default_factory=lambda: np.empty(0, int))
    closing: bool = False
    images: dict[int, Any] = dataclasses.field(default_factory=dict)
    rejected: set[int] = dataclasses.field(default_factory=set)
    trace: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    failures: int = 0
    idle: int = 0


class Loop:
    """Takes prompts up as the engine has room, asks their algorithms, charges, submits, collects, ranks."""

    def __init__(
        self,
        prompts: list[str],
        algorithm: Algorithm,
        engine: Engine,
        budget: Budget,
        utility: Utility,
        seed: int,
        keep: int,
        shared: bool,
        on_event: Listener | None,
        clock: Callable[[], float],
        begin: float,
    ) -> None:
        self.algorithm, self.engine, self.seed, self.keep, self.shared = algorithm, engine, seed, keep, shared
        self.grid, self.rewards = engine.grid, len(engine.reward_names)
        self.clock, self.begin, self.on_event = clock, begin, on_event
        self._whole = finish_cost(0, False, self.grid, self.rewards, engine.price)
        self.deadline = self.begin + budget.seconds * len(prompts) if budget.seconds else np.inf
        parent = None
        self.task, self.evaluations = task_of(budget, engine, keep, shared), in_evaluations(budget, engine)
        if shared:
            parent = Ledger(_times(budget, len(prompts)), engine.price)
            budget = Budget()
        self.jobs = [
            Job(
                i,
                prompt,
                Ledger(budget, engine.price, parent),
                ParticleTable(self.grid.steps, self.rewards, utility),
                algorithm.init(self.task),
                np.random.default_rng([seed % 2**32, zlib.crc32(prompt.encode())]),
            )
            for i, prompt in enumerate(prompts)
        ]
        for job in self.jobs:
            job.ledger.hold(self._whole)
        self.active: list[Job] = []
        engine.start(prompts, seed)

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool]) -> list[Result]:
        with self.engine.meter() as meter:
            self._run(should_stop)
        self.seconds = self.clock() - self.begin
        self.usage = meter.summary() if meter is not None else {}
        self.total = sum(job.ledger.spent.nfe for job in self.jobs) or 1
        return [self._result(job) for job in self.jobs]

    def _run(self, should_stop: Callable[[], bool]) -> None:
        queue = deque(self.jobs)
        stopping = False
        while queue or self.active:
            while queue and (self.shared or not self.active or self.engine.pending() < self.engine.capacity):
                job = queue.popleft()
                job.closing = stopping
                self.active.append(job)
                self._emit("start", job)
                if not self.shared:
                    self._ask([job])
            ready = [job for job in self.active if not job.waiting]
            # Prompts that share a budget are asked in rounds, so that speed does not decide who gets it.
            if ready and (not self.shared or len(ready) == len(self.active)):
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
        if self.shared:
            jobs = sorted(jobs, key=lambda job: (-_value(job), job.prompt))
        top = max((_value(job) for job in jobs if _value(job) < np.inf), default=np.inf)
        for job in jobs:
            if self.shared and _value(job) < top and self.engine.pending() >= self.engine.capacity:
                break  # the batch is full of moves worth more; this one keeps until the next round
            plan, job.state = (job.proposal.plan, job.proposal.state) if job.proposal else (None, job.state)
            job.proposal = None
            particles = job.table.view()
            if plan is not None:
                job.rejected |= set(plan.reject.tolist())
                if len(plan) and self._submit_prefix(job, plan, particles):
                    continue
            if particles.finished.any():
                self._end(job)
            else:
                self._close(job, particles)

    def _propose(self, job: Job) -> Proposal:
        if job.closing:
            return Proposal(None, np.inf, job.state)
        left = self.task.allowance - self.evaluations(job.ledger.spent)
        particles = dataclasses.replace(job.table.view(), moved=job.moved, left=left)
        move, state = self.algorithm.step(job.state, particles, job.rng)
        if move is None:
            return Proposal(None, np.inf, state)
        if len(move):
            validate(move, particles, self.grid, self.algorithm)
        return Proposal(self._resolve(move, particles), float(move.value), state)

    def _resolve(self, move: Move, particles: Particles) -> Plan:
        return resolve(move, particles, self.grid, self.rewards, self.engine.price, self.seed)

    def _submit_prefix(self, job: Job, plan: Plan, particles: Particles) -> bool:
        """Submit as many rows of the plan, from the first on, as fit with what must be held back after them."""
        rows = len(plan)
        if not self._submit(job, plan, particles):
            low, high = 0, rows
            while high - low > 1:
                middle = (low + high) // 2
                head = plan.head(middle)
                fits = job.ledger.affords(head.cost, self._reserve(head, particles))
                low, high = (middle, high) if fits else (low, middle)
            if low == 0:
                return False
            job.warnings.append(f"the budget afforded {low} of the {rows} rows of move {len(job.trace)}")
            self._submit(job, plan.head(low), particles)
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
        cached = np.concatenate([[False], rows.score & ~last, particles.cached[resting]])
        pulled = np.concatenate([np.zeros(1 + len(plan), bool), particles.pulled[resting]])
        return finish_cost(step, cached, self.grid, self.rewards, self.engine.price, pulled)

    def _close(self, job: Job, particles: Particles) -> None:
        """Nothing is finished and nothing else can be paid for: finish the best particle from the reserve."""
        job.closing, job.proposal = True, None
        uids = np.flatnonzero(particles.alive)
        order = np.lexsort((-particles.step[uids], -particles.value(uids)))
        for uid in uids[order]:
            move = advance(particles, [uid], self.grid.steps)
            if self._submit(job, self._resolve(move, particles), particles):
                return
        if not self._submit(job, self._resolve(fresh(1, self.grid.steps), particles), particles):
            raise RuntimeError(f"nothing left to finish an image with: {job.ledger.summary()}")

    def _submit(self, job: Job, plan: Plan, particles: Particles) -> bool:
        """Charge for a plan and hand it to the engine; False, and nothing done, when the ledger does not afford it."""
        cost, reserve, rows = plan.cost, self._reserve(plan, particles), plan.rows
        if not job.ledger.affords(cost, reserve):
            return False
        job.ledger.charge(cost, reserve)
        job.idle = job.idle + 1 if cost == Cost() else 0
        check_idle(job.idle, self.algorithm)
        guided = self.engine.price.guided
        pulled = np.zeros(len(plan), bool) if guided is None else owned_gradients(plan, particles, guided.at)
        job.table.place(plan, pulled)
        if len(plan.drop):
            self.engine.drop(job.index, plan.drop.tolist())
            self._emit("drop", job, uids=tuple(plan.drop.tolist()))
        job.pending, job.waiting = plan, len(plan)
        job.trace.append(
            {
                "move": len(job.trace),
                "cost": cost.counts(),
                "uids": plan.uid.tolist(),
                "parents": rows.parent.tolist(),
                "start": rows.start.tolist(),
                "stop": rows.stop.tolist(),
                "seeds": plan.seed.tolist(),
                "scores": {},
                "drop": plan.drop.tolist(),
                "closing": job.closing,
            }
        )
        self._emit("move", job, uids=tuple(plan.uid.tolist()), nfe=cost.nfe, move=job.trace[-1])
        self.engine.submit(job.index, plan)
        return True

    def _collect(self, outcome: Outcome) -> None:
        job = self.jobs[outcome.job]
        job.table.record(outcome)
        job.waiting -= len(outcome.uids)
        if outcome.scores is None or outcome.images is None:
            return
        uids = outcome.uids.tolist()
        job.trace[-1]["scores"].update(zip(uids, outcome.scores.tolist(), strict=True))
        self._note_failures(job, outcome)
        for i in np.flatnonzero(outcome.step == self.grid.steps).tolist():
            job.images[uids[i]] = outcome.images[i]
        if len(job.images) > 4 * self.keep + 32:
            job.images = {uid: job.images[uid] for uid in self._ranking(job)[: self.keep]}
        if self.on_event is None:
            return
        best = float(job.table.view().value(self._ranking(job)[:1])[0]) if job.images else float("nan")
        kept = outcome.kept or [{}] * len(uids)
        rows = zip(uids, outcome.step.tolist(), outcome.scores.tolist(), outcome.images, kept, strict=True)
        for uid, step, scores, image, more in rows:
            self._emit("score", job, uids=(uid,), step=step, scores=tuple(scores), image=image, kept=more, best=best)

    def _note_failures(self, job: Job, outcome: Outcome) -> None:
        failed = [i for i, error in enumerate(outcome.errors) if error is not None]
        if failed and not job.failures:
            uid, step = int(outcome.uids[failed[0]]), int(outcome.step[failed[0]])
            where = f"particle {uid} (seed {job.table.view().seed[uid]}) at step {step}"
            job.warnings.append(f"no score for {where}, which is ranked last: {outcome.errors[failed[0]]}")
            logger.warning("prompt %r: %s", job.prompt, job.warnings[-1])
        job.failures += len(failed)

    # --- stopping early ---------------------------------------------------------------------------------------

    def _late(self, queued: int) -> bool:
        """Whether only the time to finish one image for each prompt without one is left."""
        if self.deadline == np.inf:
            return False
        rates = self.engine.price.seconds
        if rates is None:
            return self.clock() >= self.deadline
        bare = [job for job in self.active if not job.table.view().finished.any()]
        one = self._whole
        need = sum(rates.of(job.ledger.reserve) for job in bare) + queued * rates.of(one)
        batches = -(-(len(bare) + queued) // max(1, self.engine.capacity // 2))
        need += rates.call * self.grid.nfe * batches
        return bool(self.clock() + need >= self.deadline)

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
            particles = job.table.view()
            if particles.finished.any():
                self._end(job)
            else:
                self._close(job, particles)

    def _unspent(self, job: Job, cancelled: Outcome) -> Cost:
        """The part of a cancelled move's price that did not run. Records how far its rows got."""
        job.table.record(cancelled)
        if job.pending is None:
            return Cost()
        price = self.engine.price
        return unspent(job.pending, cancelled, job.table.view(), self.grid, self.rewards, price)

    # --- the end ------------------------------------------------------------------------------------------------

    def _end(self, job: Job) -> None:
        job.ledger.hold(Cost())
        self.active.remove(job)
        self.engine.drop(job.index, range(len(job.table.view())))
        if job.failures > 1:
            job.warnings.append(f"{job.failures} scores failed in all")
        self._emit("end", job)

    def _ranking(self, job: Job) -> list[int]:
        uids = np.array(sorted(set(job.images) - job.rejected or job.images), int)
        return [int(u) for u in uids[np.argsort(-job.table.view().value(uids), kind="stable")]]

    def _result(self, job: Job) -> Result:
        particles = job.table.view()
        names = self.engine.reward_names
        ranking = self._ranking(job)
        values: Sequence[float] = particles.value(ranking)[: self.keep].tolist() if ranking else []
        images = tuple(
            Candidate(
                uid,
                int(particles.seed[uid]),
                float(v) if np.isfinite(v) else float("nan"),
                {name: float(s) for name, s in zip(names, particles.scores[uid, -1], strict=True)},
                job.images[uid],
            )
            for uid, v in zip(ranking, values, strict=False)
        )
        if not images:
            job.warnings.append("stopped before this prompt was taken up")
        elif not any(np.isfinite(candidate.reward) for candidate in images):
            job.warnings.append("no image has a score: which of them is the best is not known")
        if 0 < len(images) < self.keep:
            job.warnings.append(f"{len(images)} of the {self.keep} images asked for were finished")
        share = job.ledger.spent.nfe / self.total
        phases = self.engine.timings
        spent = {
            **job.ledger.summary(),
            "cost": job.ledger.spent,
            "seconds": self.seconds * share,
            **{f"seconds_{k}": v * share for k, v in phases.items()},
            "seconds_all_prompts": self.seconds,
            "verifier_share": _verifier_share(phases),
            **_shared_usage(self.usage, share, len(images)),
            "seeds": int(((particles.parent < 0) & ((particles.step > 0) | particles.cached)).sum()),
            "finished": int(particles.finished.sum()),
            "gain_of_second_half": _second_half(particles),
            "calibration": self.engine.probed.counts(),
        }
        told = (spent, tuple(job.trace), particles, tuple(job.warnings))
        return Result(job.prompt, images, *told, state=job.state, levels=self.grid.levels)

    def _emit(self, kind: str, job: Job | None, **details: Any) -> None:
        if self.on_event is not None:
            index = job.index if job is not None else -1
            self.on_event(Event(kind, index, self.clock() - self.begin, **details))


def _value(job: Job) -> float:
    """What a job's proposed move is worth; inf where it proposes none, as ending costs nothing."""
    return job.proposal.value if job.proposal is not None else np.inf


def _verifier_share(seconds: Mapping[str, float]) -> float | None:
    """The share of decoding and rewards in what denoising, decoding and rewards took, in [0, 1]; None without times."""
    total = sum(seconds.values())
    return 1 - seconds["denoise"] / total if total > 0 else None


def _shared_usage(usage: Mapping[str, Any], share: float, images: int) -> dict[str, Any]:
    """What the run used (meter.py), its energy by this prompt's share of it."""
    found = {k: v for k, v in usage.items() if k not in ("seconds", "energy_joules_per_image")}
    for name in ("energy_joules", "co2_grams"):
        found |= {name: None if found.get(name) is None else found[name] * share}
    joules = found["energy_joules"]
    return {**found, "energy_joules_per_image": joules / images if joules is not None and images else None}


def _second_half(particles: Particles) -> float | None:
    """By how much the best finished image exceeds the best of half of them, on average over halves; None below 4.

    Best-of-N rises ever more slowly with log N, so doubling the budget can be expected to gain less than this.
    """
    from ttsnap.core.metrics import best_of_n  # imported late: scipy would double the start of the command line

    value = particles.value(np.flatnonzero(particles.finished))
    value = value[np.isfinite(value)]
    return float(value.max() - best_of_n(value, len(value) // 2)) if len(value) >= 4 else None


def _times(budget: Budget, n: int) -> Budget:
    caps = dataclasses.asdict(budget)
    return Budget(**{k: None if v is None else v * n for k, v in caps.items()})
