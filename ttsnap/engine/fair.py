"""Fair turns: whoever asks for much does not keep those waiting who ask for little. No torch, no
model, no prices.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). Whoever waits has a tag, at which its next
turn starts in a virtual time; the smallest tag is served first, and grows by what it got, divided
by its weight. An idle key re-enters at the current virtual time and earns no credit. While two wait
all the time, their shares, divided by their weights, differ by at most a turn of each. Where a
weight changes, so does how far its tag lies ahead: what it got counts as if the new weight had been
there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

KeyT = TypeVar("KeyT")


class FairShare(Generic[KeyT]):
    """Who is served next, of those that wait. Keys are compared by their tags; equal ones are
    served as they came."""

    def __init__(self) -> None:
        self.now = 0.0
        self.weights: dict[KeyT, float] = {}
        """Turns that a key gets where others get one; else 1."""
        self._waiting: dict[KeyT, float] = {}
        self._served: dict[KeyT, float] = {}
        """Tags of those that wait no longer, as far as they lie ahead of now: who comes back at
        once is not new."""

    def wait(self, keys: Iterable[KeyT]) -> None:
        """These wait now, in the order in which they came, and no others."""
        before = self._waiting
        self._waiting = {
            key: before[key] if key in before else max(self.now, self._served.get(key, 0.0))
            for key in keys
        }
        known = {**self._served, **before}
        self._served = {
            key: tag for key, tag in known.items() if key not in self._waiting and tag > self.now
        }

    def first(self, among: Collection[KeyT] | None = None) -> KeyT:
        """Whose turn it is, of all that wait or only of these. ValueError where nobody waits."""
        return min(self._waiting if among is None else among, key=self._waiting.__getitem__)

    def serve(self, key: KeyT, amount: float = 1.0) -> None:
        """It gets so much."""
        self.now = max(self.now, self._waiting[key])
        self._waiting[key] += amount / self.weights.get(key, 1.0)

    def weigh(self, key: KeyT, weight: float) -> None:
        """Its weight from now on."""
        before = self.weights.get(key, 1.0)
        self.weights[key] = weight
        for tags in (self._waiting, self._served):
            if key in tags:
                tags[key] = self.now + (tags[key] - self.now) * before / weight

    def leave(self, key: KeyT) -> None:
        """It got all that it waited for."""
        self._served[key] = self._waiting.pop(key)


NodeT_co = TypeVar("NodeT_co", covariant=True)
"""What is evaluated: many rows may wait for one and the same."""


class Stage(IntEnum):
    """What rows wait for, first what is done first: others do not wait for long, and rows that go
    on fill the denoiser's batches together."""

    BEGIN = 0
    """Their particles have not begun."""
    DRAFT = 1
    """They are looked at by drafts. Once a row has its draft, it is through."""
    STEP = 2
    """Evaluations and gradients."""


class Waits(Protocol[NodeT_co]):
    """A row as the scheduler sees it."""

    @property
    def job(self) -> int:
        """The prompt that it belongs to."""

    @property
    def waiting(self) -> NodeT_co | None:
        """The node that must be evaluated before it can go on; None where it waits for nothing."""

    @property
    def stage(self) -> Stage:
        """What is to be done with that node. The nodes of one batch are of one stage."""

    @property
    def needs_gradient(self) -> bool:
        """Whether the node that it waits for must get a gradient as well."""

    @property
    def done(self) -> bool:
        """Whether it has come to its end, but for its score; true for good once it is."""

    @property
    def scored(self) -> bool:
        """Whether it gets a score there."""


RowT = TypeVar("RowT", bound=Waits[object])


class FairTurns:
    """Turns of jobs in the batches of an engine: each evaluation is a turn of its job.

    The rows of one job are served as they came, its first stage first. A batch is of one stage,
    that of the job whose turn it is: no job waits for long for its own, though the bound above
    holds among the jobs of one stage only.
    """

    def __init__(self) -> None:
        self.share: FairShare[int] = FairShare()

    def choose(self, rows: Sequence[RowT], size: int) -> list[RowT]:
        """All rows that wait for the nodes to evaluate next, at most `size` nodes and of one
        stage."""
        jobs = _by_job_and_stage(rows)
        self.share.wait(jobs)
        if not jobs:
            return []
        stage = min(jobs[self.share.first()])
        queues = {
            job: list(reversed(stages.pop(stage).values()))
            for job, stages in jobs.items()
            if stage in stages
        }
        chosen: list[RowT] = []
        for _ in range(size):
            if not queues:
                break
            job = self.share.first(queues)
            chosen += queues[job].pop()
            self.share.serve(job)
            if not queues[job]:
                del queues[job]
                if not jobs[job]:
                    self.share.leave(job)
        return chosen


def _by_job_and_stage(rows: Sequence[RowT]) -> dict[int, dict[Stage, dict[int, list[RowT]]]]:
    """The rows that wait: by job, stage and the identity of the node that they wait for, all in
    order."""
    found: dict[int, dict[Stage, dict[int, list[RowT]]]] = {}
    for row in rows:
        if (node := row.waiting) is not None:
            nodes = found.setdefault(row.job, {}).setdefault(row.stage, {})
            nodes.setdefault(id(node), []).append(row)
    return found
