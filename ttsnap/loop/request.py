"""A request to a running loop: some prompts with one specification, and how far they have come."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttsnap.core.cost import Cost
from ttsnap.core.grid import Task
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan, image_cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm, Engine
from ttsnap.core.results import DROP, FINISH, Event
from ttsnap.core.selection import BEST, Selection
from ttsnap.core.table import ParticleTable
from ttsnap.loop.budget import Budget, Cap, tightest
from ttsnap.loop.by_hand import alone
from ttsnap.loop.clock import Pace, PlannedMove, RequestClock
from ttsnap.loop.job import Job
from ttsnap.loop.ledger import Ledger

Listener = Callable[[Event], None]
STOPPED = "stopped"
TIMED = "timed"
SHORT = "out of memory"
FOUND = "all was found"
"""Why a request has ended that someone ended early, or its time, or a lack of memory."""
PARTS = 4
"""In how many parts the seeds of a move are begun."""


@dataclass(frozen=True)
class LoopSearch:
    """How each of some prompts is searched. ValueError for a seed out of range."""

    algorithm: Algorithm
    """Decides what to denoise."""
    budget: Budget = field(default_factory=Budget)
    """Caps per prompt."""
    selection: Selection = BEST
    """What counts as best, and how many images come back."""
    seed: int = 0
    """Candidate i of a prompt starts from the noise of torch seed `seed + i`, in 0..2^64 - 1; 0
    comes after the last."""
    shared: bool = False
    """Whether prompts draw on one pot of the budget times their number."""
    plan: tuple[PlannedMove, ...] = ()
    """The moves that a budget in seconds was fitted by. Such a search uses its time: what its
    algorithm leaves of it goes to further images."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2^64 - 1, as torch has them, got {self.seed}")


@dataclass(eq=False)
class RunningRequest:
    """Prompts that are searched by one specification."""

    spec: LoopSearch
    cap: Cap
    """What the budget is planned by."""
    task: Task
    whole: Cost
    """Cost of one image."""
    watch: RequestClock
    listeners: tuple[Listener, ...]
    make: Callable[[int, int, Prompt], Job]
    """Makes a job with this number, of the prompt at this place, which has not begun."""
    jobs: tuple[Job, ...]
    """All of them, in the order of the prompts."""
    queue: deque[Job]
    """Jobs that are not taken up yet."""
    active: list[Job] = field(default_factory=list)
    """Jobs that are taken up and not at their end."""
    pace: Pace | None = None
    """What goes into the time that is left; None where there is no deadline, or no price in
    seconds."""
    stopping: bool = False
    """Whether nothing new is begun."""
    ended: str = ""
    """Why: STOPPED, TIMED or SHORT."""
    in_parts: bool = False
    """As of Led."""
    eager: bool = False
    """Whether some seeds are scored before the others begin, for whoever waits for pictures."""

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        spec: LoopSearch,
        engine: Engine,
        watch: RequestClock,
        listeners: Sequence[Listener],
        first: int,
    ) -> RunningRequest:
        """A request whose jobs are numbered from `first` on; all of them are queued."""
        cap = tightest(spec.budget, engine)
        rewards = len(engine.reward_names)
        price = engine.price
        task = cap.task(spec.selection.keep, spec.shared)
        whole = image_cost(engine.grid, rewards, price)
        pot = Ledger(spec.budget.times(len(prompts)), price) if spec.shared else None

        def make(index: int, place: int, prompt: Prompt) -> Job:
            """What the prompt draws depends on its text for rewards and the seed alone, not on
            other prompts."""
            ledger = Ledger(spec.budget, price) if pot is None else Ledger(Budget(), price, pot)
            ledger.hold(whole)
            table = ParticleTable(engine.grid.steps, rewards, selection)
            rng = np.random.default_rng([spec.seed % 2**32, zlib.crc32(prompt.read.encode())])
            return Job(index, place, prompt, ledger, table, spec.algorithm.init(task), rng)

        selection = spec.selection.named(engine.reward_names)
        jobs = tuple(make(first + i, i, prompt) for i, prompt in enumerate(prompts))
        timed = price.seconds is not None and watch.deadline < np.inf and len(engine.timings) > 0
        pace = (
            Pace(engine, price.seconds, watch, spec.plan)
            if price.seconds is not None and timed
            else None
        )
        heard = tuple(listeners)
        return cls(spec, cap, task, whole, watch, heard, make, jobs, deque(jobs), pace=pace)

    @property
    def repeated(self) -> list[Job]:
        """Jobs that begin anew where some are lost: those that are not at their end, and all that
        share a budget with one of them."""
        if self.spec.shared:
            return list(self.jobs)
        return sorted([*self.active, *self.queue], key=lambda job: job.place)

    def begin_anew(self, first: int) -> None:
        """Begin the repeated jobs again, numbered from `first` on. Their seeds and draws are the
        same, and so is what they find."""
        repeated = self.repeated
        for job in repeated:
            job.ledger.refund(job.ledger.spent)
            job.ledger.close()
        again = {
            job.place: self.make(index, job.place, job.prompt)
            for index, job in enumerate(repeated, first)
        }
        self.jobs = tuple(again.get(job.place, job) for job in self.jobs)
        self.active.clear()
        self.queue = deque(again.values())
        if self.pace is not None:
            self.pace.ahead = 0 * self.pace.ahead

    @property
    def done(self) -> bool:
        return not (self.queue or self.active)

    def drop(self, uid: int, prompt: int = 0) -> None:
        """As of Led."""
        self.jobs[prompt].said.append((DROP, uid))

    def finish(self, uid: int, prompt: int = 0) -> None:
        """As of Led."""
        self.jobs[prompt].said.append((FINISH, uid))

    def tell(self, kind: str, job: Job | None, **details: Any) -> None:
        """Tell the listeners what happened (`Event`) to a prompt, or to none in particular."""
        if self.listeners:
            event = Event(kind, job.place if job is not None else -1, self.watch.seconds, **details)
            for listener in self.listeners:
                listener(event)

    def tell_scores(self, job: Job, outcome: Outcome, engine: Engine) -> None:
        """Tell of each row that was scored."""
        if not self.listeners or outcome.scores is None or outcome.images is None:
            return
        first = job.ranking()[:1]
        end = engine.grid.steps
        best = float(job.particles.value(first)[0]) if first else float("nan")
        kept = outcome.kept or [{}] * len(outcome.uids)
        calls = engine.price.calls(len(engine.reward_names))
        columns = outcome.uids.tolist(), outcome.step.tolist(), outcome.scores.tolist()
        for uid, step, scores, picture, more in zip(*columns, outcome.images, kept, strict=True):
            look = "" if step == end or job.plan is None else job.plan.look.at(step).name
            details = {
                "scores": tuple(scores),
                "picture": picture,
                "kept": more,
                "best": best,
                "reward_calls": calls,
            }
            self.tell("score", job, uids=(uid,), step=step, look=look, **details)

    @property
    def waiting(self) -> int:
        """Rows under way."""
        return sum(job.waiting for job in self.active)

    @property
    def time_is_up(self) -> str:
        """How its time has ended it, in words: at the deadline, or before where nothing fits."""
        seconds = self.watch.seconds
        whole = self.watch.deadline - self.watch.begin
        if seconds + self.watch.allowed_lateness >= whole:
            return f"{whole:g} s were up"
        return f"after {seconds:.3g} of {whole:g} s there was no time for another image"

    @property
    def uses_time(self) -> bool:
        """Whether time that is left goes to images."""
        return (
            self.pace is not None and self.ended != STOPPED and bool(self.spec.plan or self.ended)
        )

    @property
    def late(self) -> bool:
        """Whether only the time for what is under way is left, and to finish one image for each
        prompt without one."""
        if self.ended == STOPPED or self.pace is None:
            return not self.ended and self.watch.clock() >= self.watch.deadline
        # what was chosen to fit is not judged at once
        more = self.watch.allowed_lateness if self.stopping else 0.0
        return self.pace.left + more < self._held(self.active)

    def part(self, job: Job, plan: Plan, batch: int) -> int:
        """How many rows of a plan are begun before it is known what they take, or how they look."""
        early = alone(plan) and (plan.rows.stop < self.task.grid.steps).all()
        if not early or not (self.spec.plan or (self.eager and not job.trace)):
            return len(plan)
        return min(batch, max(2, -(-(job.begun + len(plan)) // PARTS)))

    def _held(self, jobs: Sequence[Job]) -> float:
        """Seconds to finish an image for each of these jobs without one, and for each that is
        queued."""
        assert self.pace is not None
        reserves = [job.ledger.reserve for job in jobs if job.ledger.reserve != Cost()] + [
            self.whole
        ] * len(self.queue)
        return self.pace.finishing(Cost().plus(*reserves), len(reserves))

    def rows_in_time(self, job: Job, plan: Plan, reserve: Cost) -> int:
        """How many rows of a plan there is time for, with what they bring with them in later moves,
        and with all that other prompts want. reserve: what must be held back after it."""
        if self.pace is None:
            return len(plan)
        pace = self.pace
        others = [other for other in self.active if other is not job]
        later = 0.0 if job.closing else pace.later(job.moves)
        hold = pace.finishing(reserve)
        rows = np.arange(job.begun + 1, job.begun + len(plan) + 1)
        until = pace.until(plan) + later * rows  # seconds at which each row is through
        beside = 0.0 if later else hold
        own = until[-1] + beside
        share = pace.left * own / (own + self._wanted_by(others, until[-1]))
        in_share = int(np.searchsorted(until, share - beside + 1e-9, "right"))
        if in_share:
            return in_share
        first_fits = until[0] <= pace.left - self._held(others) - hold
        return int(first_fits)

    def _wanted_by(self, others: Sequence[Job], seconds: float) -> float:
        """Seconds that other prompts want, those that are queued among them. seconds: what the
        plan of one of them takes."""
        assert self.pace is not None
        if self.stopping:
            idle = sum(not other.waiting for other in others)
            return seconds * (len(self.queue) + idle)
        if self.pace.plan:
            queued = len(self.queue) * self.pace.rest(0)
            return sum(self.pace.rest(other.moves) for other in others) + queued
        return self._held(others)

    def left(self, job: Job) -> float:
        """What this prompt may still spend, in the unit of its task's allowance."""
        left = self.task.allowance - self.cap.evaluations(job.ledger.spent)
        if self.pace is None or self.spec.budget.seconds is None:
            return left
        image = self.pace.finishing(self.whole)
        jobs = len(self.queue) + sum(not other.waiting for other in self.active)
        timed = max(0.0, self.pace.left) / image * self.cap.evaluations(self.whole) / jobs
        return timed if self.cap.unheld.seconds is not None else min(left, timed)
