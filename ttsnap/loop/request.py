"""What is asked of a running loop at once: some prompts with one specification, and how far they have come."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttsnap.core import utility as utilities
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Task
from ttsnap.core.particles import Utility
from ttsnap.core.plans import finish_cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm, Engine
from ttsnap.core.results import Event
from ttsnap.core.table import ParticleTable
from ttsnap.loop.budget import Budget, Cap, tightest
from ttsnap.loop.job import Job
from ttsnap.loop.ledger import Ledger

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class SearchSpec:
    """How each of some prompts is searched.

    algorithm: decides what to denoise. budget: caps per prompt; with `shared`, the prompts draw on one pot of that many
    times their number. utility: makes one number of an image's scores. seed: candidate i of a prompt starts from the
    noise of torch seed `seed + i`, in 0..2^64 - 1, where 0 comes after the last. keep: how many finished images come
    back. ValueError for a seed or keep out of range.
    """

    algorithm: Algorithm
    budget: Budget = field(default_factory=Budget)
    utility: Utility = utilities.mean
    seed: int = 0
    keep: int = 1
    shared: bool = False

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2^64 - 1, as torch has them, got {self.seed}")


@dataclass
class RequestClock:
    """The time of a request: `begin` is when it began by `clock`, in seconds; `deadline` is when it has to end."""

    clock: Callable[[], float]
    begin: float
    deadline: float = np.inf

    @property
    def seconds(self) -> float:
        return self.clock() - self.begin


@dataclass(eq=False)
class Request:
    """Prompts that are searched by one specification. Jobs are in `queue` until they are taken up, then `active` until
    they end; `jobs` are all of them, in the order of the prompts.

    cap: what the budget is planned by. whole: the cost of one image. stopping: whether nothing new is begun.
    """

    spec: SearchSpec
    cap: Cap
    task: Task
    whole: Cost
    watch: RequestClock
    listener: Listener | None
    jobs: tuple[Job, ...]
    queue: deque[Job]
    active: list[Job] = field(default_factory=list)
    stopping: bool = False

    @property
    def done(self) -> bool:
        return not (self.queue or self.active)

    def tell(self, kind: str, job: Job | None, **details: Any) -> None:
        """Tell the listener, where there is one, what happened (`Event`) to a prompt, or to none in particular."""
        if self.listener is not None:
            place = job.place if job is not None else -1
            self.listener(Event(kind, place, self.watch.seconds, **details))

    def late(self, engine: Engine) -> bool:
        """Whether only the time to finish one image for each prompt without one is left."""
        rates, watch, queued = engine.price.seconds, self.watch, len(self.queue)
        if watch.deadline == np.inf or rates is None:
            return watch.clock() >= watch.deadline
        bare = [job for job in self.active if not job.finished]
        need = sum(rates.of(job.ledger.reserve) for job in bare) + queued * rates.of(self.whole)
        batches = -(-(len(bare) + queued) // max(1, engine.capacity // 2))
        need += rates.call * engine.grid.nfe * batches
        return bool(watch.clock() + need >= watch.deadline)


def request_of(
    prompts: Sequence[Prompt],
    spec: SearchSpec,
    engine: Engine,
    watch: RequestClock,
    listener: Listener | None,
    first: int,
) -> Request:
    """A request whose jobs are numbered from `first` on; all of them are queued."""
    cap, rewards, price = tightest(spec.budget, engine), len(engine.reward_names), engine.price
    task, whole = cap.task(spec.keep, spec.shared), finish_cost(0, False, engine.grid, rewards, price)
    pot = Ledger(spec.budget.times(len(prompts)), price) if spec.shared else None

    def job(place: int, prompt: Prompt) -> Job:
        """What the prompt draws depends on its text for rewards and the seed alone, not on other prompts."""
        ledger = Ledger(spec.budget, price) if pot is None else Ledger(Budget(), price, pot)
        ledger.hold(whole)
        table = ParticleTable(engine.grid.steps, rewards, spec.utility)
        rng = np.random.default_rng([spec.seed % 2**32, zlib.crc32(prompt.read.encode())])
        return Job(first + place, place, prompt, ledger, table, spec.algorithm.init(task), rng)

    jobs = tuple(job(i, prompt) for i, prompt in enumerate(prompts))
    return Request(spec, cap, task, whole, watch, listener, jobs, deque(jobs))
