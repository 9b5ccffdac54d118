"""Which rows run next. It knows no torch, no model and no prices: it sees rows only as `Waits`
describes them.

Rows are served in the order in which they came. A batch holds the nodes for which the first rows
wait. So a row stays in the batch until it is done, and its place then goes to the next row, of any
prompt. Where prompts belong to people who must not wait for each other, they take turns instead
(fair.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ttsnap.engine.fair import FairTurns, Stage, Waits

NodeT = TypeVar("NodeT")
RowT = TypeVar("RowT", bound=Waits[object])


@dataclass(frozen=True)
class ScheduledBatch(Generic[NodeT]):
    """Nodes to compute, each once; together no more than the batch size."""

    gradients: list[NodeT]
    """Those that get a gradient, and with it their evaluation if that is new."""
    evaluations: list[NodeT]
    """The rest."""
    stage: Stage = Stage.STEP
    """What is to be done with all of them."""


def next_batch(rows: Sequence[Waits[NodeT]], size: int) -> ScheduledBatch[NodeT]:
    """The nodes for which the first of these rows wait, at most `size`, all of one stage: the first
    that any of the rows is at."""
    nodes: dict[int, NodeT] = {}
    stage = min((row.stage for row in rows), default=Stage.STEP)
    for row in rows:
        if len(nodes) == size:
            break
        if row.stage == stage and (node := row.waiting) is not None:
            nodes[id(node)] = node
    gradients: dict[int, NodeT] = {}
    for row in rows:
        if row.needs_gradient and (node := row.waiting) is not None and id(node) in nodes:
            gradients[id(node)] = node
    evaluations = [node for key, node in nodes.items() if key not in gradients]
    return ScheduledBatch(list(gradients.values()), evaluations, stage)


class Scheduler(Generic[RowT]):
    """The rows of one engine: `going` ones, and `arrived` ones, which are done and wait to be
    scored.

    turns: of jobs that share the batches fairly; None: rows are served in the order in which they
        came.
    """

    def __init__(self, turns: FairTurns | None = None) -> None:
        self.turns = turns
        self.going: list[RowT] = []
        self.arrived: list[RowT] = []

    def __len__(self) -> int:
        return len(self.going) + len(self.arrived)

    def first(self, size: int) -> list[RowT]:
        """The rows of which the next batch of `size` is made, first ones first. Called once for
        each batch."""
        return self.going if self.turns is None else self.turns.choose(self.going, size)

    def add(self, rows: Sequence[RowT]) -> None:
        """Queue the rows of a move, behind all others."""
        self.going.extend(rows)

    def remove_job(self, job: int) -> list[RowT]:
        """Take the rows of one prompt off, and return them."""
        mine = [row for row in (*self.arrived, *self.going) if row.job == job]
        self.arrived, self.going = (
            [row for row in rows if row.job != job] for rows in (self.arrived, self.going)
        )
        return mine

    def collect(self) -> list[RowT]:
        """Part the rows that are done from those that go on. Returns the former that get no score:
        they are through."""
        going: list[RowT] = []
        through: list[RowT] = []
        for row in self.going:
            kind = going if not row.done else self.arrived if row.scored else through
            kind.append(row)
        self.going = going
        return through

    def due(self, size: int, *, hold: bool = False) -> list[RowT]:
        """Arrived rows that are to be scored now, `size` at a time.

        Full batches. The rest is due when the denoiser has nothing left to do or, where jobs take
        turns, nothing left for one of them. hold: nothing before that, for engines where going from
        the denoiser to the decoder is slow.
        """
        going = {row.job for row in self.going} if self.turns is not None else set()
        if not self.going or (
            self.turns is not None and any(row.job not in going for row in self.arrived)
        ):
            return list(self.arrived)
        return [] if hold else self.arrived[: len(self.arrived) // size * size]

    def fills(self, size: int) -> bool:
        """Whether rows that go on wait for as many nodes as a batch of `size` has."""
        waiting = (row.waiting for row in self.going)
        return len({id(node) for node in waiting if node is not None}) >= size

    def leave(self, rows: Collection[RowT]) -> None:
        """These arrived rows have their scores."""
        through = {id(row) for row in rows}
        self.arrived = [row for row in self.arrived if id(row) not in through]


def by_job(rows: Sequence[RowT]) -> dict[int, list[int]]:
    """Indices of rows by job, in order."""
    indices: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        indices.setdefault(row.job, []).append(i)
    return indices
