"""One run of the search loop: the jobs, what they wait for, and every charge. See search.py for the promises."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ttsnap.budget import Budget, Ledger, finish_cost, price_move
from ttsnap.table import ParticleTable
from ttsnap.types import (
    Algorithm,
    Candidate,
    Cost,
    Engine,
    Event,
    Grid,
    IntArray,
    Move,
    Outcome,
    Particles,
    Result,
    Utility,
    advance,
    fresh,
)

logger = logging.getLogger(__name__)
Listener = Callable[[Event], None]


@dataclasses.dataclass(eq=False)
class Job:
    """One prompt under way."""

    index: int
    prompt: str
    ledger: Ledger
    table: ParticleTable
    state: Any
    key: int
    waiting: set[int] = dataclasses.field(default_factory=set)
    pending: tuple[Move, IntArray, Particles] | None = None
    closing: bool = False
    images: dict[int, Any] = dataclasses.field(default_factory=dict)
    trace: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    failures: int = 0


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
        self.probe = Cost()  # what calibration took, to be reported
        self.deadline = self.begin + budget.seconds * len(prompts) if budget.seconds else np.inf
        parent = None
        if shared:
            parent = Ledger(_times(budget, len(prompts)), engine.price)
            budget = Budget()
        self.jobs = [
            Job(
                i,
                prompt,
                Ledger(budget, engine.price, parent),
                ParticleTable(self.grid.steps, self.rewards, utility),
                algorithm.init(self.grid),
                zlib.crc32(prompt.encode()),
            )
            for i, prompt in enumerate(prompts)
        ]
        for job in self.jobs:
            job.ledger.hold(finish_cost(0, False, self.grid, self.rewards))
        self.active: list[Job] = []
        engine.start(prompts, seed)

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool]) -> list[Result]:
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
            for outcome in self.engine.tick():
                self._collect(outcome)
            asked = not stopping and should_stop()
            if asked or (not stopping and self._late(len(queue))):
                stopping = True
                self._wind_up()
                if asked:
                    queue.clear()
        self.seconds = self.clock() - self.begin
        return [self._result(job) for job in self.jobs]

    def _ask(self, jobs: list[Job]) -> None:
        """Get the next move of each job and carry out what the ledgers afford, the most valuable first."""
        moves = []
        for job in jobs:
            move = None
            particles = job.table.view()
            if not job.closing:
                rng = np.random.default_rng([self.seed % 2**32, job.key, len(job.trace)])
                move, job.state = self.algorithm.step(job.state, particles, rng)
                if move is not None and len(move):
                    _validate(move, particles, self.grid, self.algorithm)
            moves.append((job, move, particles))
        if self.shared:
            moves.sort(key=lambda m: (-(m[1].value if m[1] is not None else 0.0), m[0].prompt))
        for job, move, particles in moves:
            n = 0 if move is None else self._affordable(job, move, particles)
            if move is not None and n > 0:
                if n < len(move):
                    job.warnings.append(f"the budget afforded {n} of the {len(move)} rows of move {len(job.trace)}")
                self._submit(job, move.head(n), particles)
            elif particles.finished.any():
                self._end(job)
            else:
                self._close(job, particles)

    def _affordable(self, job: Job, move: Move, particles: Particles) -> int:
        """How many rows of the move, from the first on, fit with what must be held back after them."""

        def fits(n: int) -> bool:
            part = move.head(n)
            cost = price_move(part, particles, self.grid, self.rewards)
            return job.ledger.affords(cost, self._reserve(part, particles))

        n = len(move)
        if n == 0 or fits(n):
            return n
        low = 0
        while n - low > 1:
            middle = (low + n) // 2
            low, n = (middle, n) if fits(middle) else (low, middle)
        return low

    def _reserve(self, move: Move, particles: Particles) -> Cost:
        """What finishing the nearest particle costs after this move; nothing if one is, or will be, finished."""
        steps = self.grid.steps
        if particles.finished.any() or bool((move.score & (move.stop == steps)).any()):
            return Cost()
        options = [finish_cost(0, False, self.grid, self.rewards)]
        options += [
            finish_cost(int(b), bool(s), self.grid, self.rewards) for b, s in {*zip(move.stop, move.score, strict=True)}
        ]
        resting = particles.alive.copy()
        resting[move.parent[move.parent >= 0]] = False
        resting[move.drop] = False
        at = zip(particles.step[resting], particles.cached[resting], strict=True)
        options += [finish_cost(int(s), bool(c), self.grid, self.rewards) for s, c in {*at}]
        return min(options, key=lambda c: c.nfe)

    def _close(self, job: Job, particles: Particles) -> None:
        """Nothing is finished and nothing else can be paid for: finish the best particle from the reserve."""
        job.closing = True
        uids = np.flatnonzero(particles.alive)
        order = np.lexsort((-particles.step[uids], -particles.value(uids)))
        for uid in uids[order]:
            move = advance(particles, [uid], self.grid.steps)
            if job.ledger.affords(price_move(move, particles, self.grid, self.rewards)):
                return self._submit(job, move, particles)
        self._submit(job, fresh(1, self.grid.steps), particles)

    def _submit(self, job: Job, move: Move, particles: Particles) -> None:
        cost = price_move(move, particles, self.grid, self.rewards)
        job.ledger.charge(cost, self._reserve(move, particles))
        before = dataclasses.replace(particles, step=particles.step.copy(), cached=particles.cached.copy())
        uids, seeds = job.table.place(move, self.seed)
        job.table.drop(move.drop)
        if len(move.drop):
            self.engine.drop(job.index, move.drop.tolist())
            self._emit("drop", job, uids=tuple(move.drop.tolist()))
        job.pending, job.waiting = (move, uids, before), {*uids.tolist()}
        job.trace.append(
            {
                "move": len(job.trace),
                "cost": dataclasses.asdict(cost),
                "uids": uids.tolist(),
                "parents": move.parent.tolist(),
                "start": move.start.tolist(),
                "stop": move.stop.tolist(),
                "seeds": seeds.tolist(),
                "scores": {},
                "drop": move.drop.tolist(),
                "closing": job.closing,
            }
        )
        self._emit("move", job, uids=tuple(uids.tolist()), nfe=cost.nfe)
        self.engine.submit(job.index, uids, seeds, move)

    def _collect(self, outcome: Outcome) -> None:
        if outcome.uid < 0:  # progress of a batch, not a row
            self._emit("tick", None, nfe=outcome.step)
            return
        job = self.jobs[outcome.job]
        if outcome.error is not None:
            job.failures += 1
            if job.failures == 1:
                seed = job.table.view().seed[outcome.uid]
                where = f"particle {outcome.uid} (seed {seed}) at step {outcome.step}"
                job.warnings.append(f"reward failed on {where}, which is ranked last: {outcome.error}")
                logger.warning("prompt %r: %s", job.prompt, job.warnings[-1])
        job.table.record(outcome)
        job.waiting.discard(outcome.uid)
        if outcome.scores is None:
            return
        scores = tuple(float(s) for s in outcome.scores)
        job.trace[-1]["scores"][outcome.uid] = [s if s == s else None for s in scores]
        if outcome.step == self.grid.steps:
            job.images[outcome.uid] = outcome.image
            if len(job.images) > 4 * self.keep + 32:
                keep = self._ranking(job)[: self.keep]
                job.images = {uid: job.images[uid] for uid in keep}
        if self.on_event is None:
            return
        best = float(job.table.view().value(self._ranking(job)[:1])[0]) if job.images else float("nan")
        self._emit("score", job, uids=(outcome.uid,), step=outcome.step, scores=scores, image=outcome.image, best=best)

    # --- stopping early ---------------------------------------------------------------------------------------

    def _late(self, queued: int) -> bool:
        """Whether only the time to finish one image for each prompt without one is left."""
        if self.deadline == np.inf:
            return False
        rates = self.engine.price.seconds
        if rates is None:
            return self.clock() >= self.deadline
        bare = [job for job in self.active if not job.table.view().finished.any()]
        one = finish_cost(0, False, self.grid, self.rewards)
        need = sum(rates.of(job.ledger.reserve) for job in bare) + queued * rates.of(one)
        batches = -(-(len(bare) + queued) // max(1, self.engine.capacity // 2))
        need += rates.call * self.grid.steps * batches
        return bool(self.clock() + need >= self.deadline)

    def _wind_up(self) -> None:
        """Cancel what runs, refund what did not run, and end each prompt with what it has."""
        for job in list(self.active):
            if job.closing:
                continue
            cancelled = self.engine.cancel(job.index)
            job.ledger.refund(self._unspent(job, cancelled))
            job.waiting = set()
            job.warnings.append("stopped early; the budget was not used up")
            particles = job.table.view()
            if particles.finished.any():
                self._end(job)
            else:
                self._close(job, particles)

    def _unspent(self, job: Job, cancelled: list[Outcome]) -> Cost:
        """The part of a cancelled move's price that did not run. Records how far its rows got."""
        if job.pending is None:
            return Cost()
        move, uids, before = job.pending
        at = {o.uid: o for o in cancelled}
        left = [i for i, uid in enumerate(uids.tolist()) if uid in at]
        moved = [i for i in left if at[int(uids[i])].cached or at[int(uids[i])].step > move.start[i]]
        for outcome in cancelled:
            job.table.record(outcome)
        # Rows that never ran are priced as they were, so that children of one particle share their first call.
        cost = price_move(_rows(move, [i for i in left if i not in moved]), before, self.grid, self.rewards)
        steps = np.array([at[int(uids[i])].step for i in moved], int)
        rest = dataclasses.replace(_rows(move, moved), parent=uids[moved], start=steps)
        return cost + price_move(rest, job.table.view(), self.grid, self.rewards)

    # --- the end ------------------------------------------------------------------------------------------------

    def _end(self, job: Job) -> None:
        job.ledger.hold(Cost())
        self.active.remove(job)
        self.engine.drop(job.index, range(len(job.table.view())))
        if job.failures > 1:
            job.warnings.append(f"{job.failures} scores failed in all")
        self._emit("end", job)

    def _ranking(self, job: Job) -> list[int]:
        uids = np.array(sorted(job.images), int)
        return [int(u) for u in uids[np.argsort(-job.table.view().value(uids), kind="stable")]]

    def _result(self, job: Job) -> Result:
        particles = job.table.view()
        names = self.engine.reward_names
        ranking = self._ranking(job)[: self.keep] if job.images else []
        values: Sequence[float] = particles.value(ranking).tolist() if ranking else []
        images = tuple(
            Candidate(
                uid,
                int(particles.seed[uid]),
                float(v) if np.isfinite(v) else float("nan"),
                {name: float(s) for name, s in zip(names, particles.scores[uid, -1], strict=True)},
                job.images[uid],
            )
            for uid, v in zip(ranking, values, strict=True)
        )
        if not images:
            job.warnings.append("stopped before this prompt was taken up")
        total = sum(j.ledger.spent.nfe for j in self.jobs) or 1
        share = job.ledger.spent.nfe / total
        phases = getattr(self.engine, "timings", {})
        spent = {
            **job.ledger.summary(),
            "cost": job.ledger.spent,
            "seconds": self.seconds * share,
            **{f"seconds_{k}": v * share for k, v in phases.items()},
            "seconds_all_prompts": self.seconds,
            "seeds": int((particles.parent < 0).sum()),
            "finished": int(particles.finished.sum()),
            "calibration": dataclasses.asdict(self.probe),
        }
        return Result(job.prompt, images, spent, tuple(job.trace), particles, tuple(job.warnings))

    def _emit(self, kind: str, job: Job | None, **details: Any) -> None:
        if self.on_event is not None:
            index = job.index if job is not None else -1
            self.on_event(Event(kind, index, self.clock() - self.begin, **details))


def _validate(move: Move, particles: Particles, grid: Grid, algorithm: Algorithm) -> None:
    """ValueError where a move is not possible; an algorithm's bug, caught before it costs anything."""
    who = type(algorithm).__name__
    own = move.parent >= 0
    if bool((move.parent >= len(particles)).any()) or bool((move.parent < -1).any()):
        raise ValueError(f"{who}: parents {move.parent.tolist()} outside -1..{len(particles) - 1}")
    if bool((~particles.alive[move.parent[own]]).any()):
        raise ValueError(f"{who}: parents {move.parent[own].tolist()} include dropped particles")
    at = np.where(own, particles.step[move.parent] if len(particles) else 0, 0)
    if bool(((move.start < 0) | (move.start > at) | (move.stop < move.start) | (move.stop > grid.steps)).any()):
        raise ValueError(
            f"{who}: rows must go 0 <= start <= the parent's step and start <= stop <= {grid.steps}, got "
            f"start {move.start.tolist()} stop {move.stop.tolist()} parents at {at.tolist()}"
        )
    twice = len(np.unique(move.parent[own])) < int(own.sum())
    if not algorithm.branches and (twice or bool((move.start < at).any())):
        raise ValueError(f"{who}: a move branches or renoises, but the algorithm declares branches = False")


def _rows(move: Move, rows: list[int]) -> Move:
    cut = (move.parent[rows], move.start[rows], move.stop[rows], move.score[rows], move.mix[rows])
    return Move(*cut)


def _times(budget: Budget, n: int) -> Budget:
    caps = dataclasses.asdict(budget)
    return Budget(**{k: None if v is None else v * n for k, v in caps.items()})
