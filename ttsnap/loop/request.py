"""A request to a running loop: some prompts with one specification, and how far they have come."""

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
from ttsnap.core.plans import image_cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm, Engine
from ttsnap.core.requirement import Gate
from ttsnap.core.results import Event
from ttsnap.core.table import ParticleTable
from ttsnap.loop.budget import Budget, Cap, tightest
from ttsnap.loop.job import Job
from ttsnap.loop.ledger import Ledger

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class SearchSpec:
    """How each of some prompts is searched. ValueError for a seed or keep out of range."""

    algorithm: Algorithm
    """Decides what to denoise."""
    budget: Budget = field(default_factory=Budget)
    """Caps per prompt."""
    utility: Utility = utilities.mean
    """Makes one number of an image's scores."""
    seed: int = 0
    """Candidate i of a prompt starts from the noise of torch seed `seed + i`, in 0..2^64 - 1; 0 comes after the
    last."""
    keep: int = 1
    """How many finished images come back."""
    shared: bool = False
    """Whether prompts draw on one pot of the budget times their number."""
    diversity: float = 0.0
    """How much it counts that kept images are unlike each other, against their values (core/diversity.py)."""
    gate: Gate | None = None
    """What images must meet to be returned."""
    later: bool = False
    """Whether a prompt's ledger joins a pot (Ledger.join), where what it leaves is for searches that come later."""

    def __post_init__(self) -> None:
        if self.keep < 1 or self.keep != int(self.keep):
            raise ValueError(f"keep must be {'at least 1' if self.keep < 1 else 'a whole number'}, got {self.keep}")
        if not 0 <= self.diversity < np.inf:
            raise ValueError(f"diversity must be a finite number from 0 on, got {self.diversity}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2^64 - 1, as torch has them, got {self.seed}")


@dataclass
class RequestClock:
    """The time of a request, in seconds."""

    clock: Callable[[], float]
    begin: float
    """When it began, by `clock`."""
    deadline: float = np.inf
    """When it has to end, by `clock`."""

    @property
    def seconds(self) -> float:
        return self.clock() - self.begin


@dataclass(eq=False)
class RunningRequest:
    """Prompts that are searched by one specification."""

    spec: SearchSpec
    cap: Cap
    """What the budget is planned by."""
    task: Task
    whole: Cost
    """Cost of one image."""
    watch: RequestClock
    listener: Listener | None
    jobs: tuple[Job, ...]
    """All of them, in the order of the prompts."""
    queue: deque[Job]
    """Jobs that are not taken up yet."""
    active: list[Job] = field(default_factory=list)
    """Jobs that are taken up and not at their end."""
    stopping: bool = False
    """Whether nothing new is begun."""

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
) -> RunningRequest:
    """A request whose jobs are numbered from `first` on; all of them are queued."""
    cap, rewards, price = tightest(spec.budget, engine), len(engine.reward_names), engine.price
    task, whole = cap.task(spec.keep, spec.shared, spec.later), image_cost(engine.grid, rewards, price)
    pot = Ledger(spec.budget.times(len(prompts)), price) if spec.shared else None

    def job(place: int, prompt: Prompt) -> Job:
        """What the prompt draws depends on its text for rewards and the seed alone, not on other prompts."""
        ledger = Ledger(spec.budget, price) if pot is None else Ledger(Budget(), price, pot)
        ledger.hold(whole)
        diversity = spec.diversity if spec.keep > 1 else 0.0
        table = ParticleTable(engine.grid.steps, rewards, spec.utility, diversity, gate)
        rng = np.random.default_rng([spec.seed % 2**32, zlib.crc32(prompt.read.encode())])
        return Job(first + place, place, prompt, ledger, table, spec.algorithm.init(task), rng)

    gate = None if spec.gate is None else spec.gate.named(engine.reward_names)
    jobs = tuple(job(i, prompt) for i, prompt in enumerate(prompts))
    return RunningRequest(spec, cap, task, whole, watch, listener, jobs, deque(jobs))
