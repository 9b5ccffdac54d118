"""The scheduler on plain objects: what it chooses, for whom, and that nobody waits for ever. No torch, no model."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap.engine.scheduler import Scheduler, next_batch


@dataclass(eq=False)
class Point:
    """Where a row is; rows that share it wait for the same evaluation."""

    evaluated: int = 0
    gradient: bool = False


@dataclass(eq=False)
class Plain:
    """A row that needs so many evaluations, the first at a point that it may share."""

    job: int
    length: int
    scored: bool
    guided: bool = False
    point: Point = field(default_factory=Point)
    made: int = 0
    drafted: int = 0

    @property
    def lane(self) -> int:
        return self.drafted if self.made < self.length else 0

    @property
    def needs_gradient(self) -> bool:
        return self.guided and self.made < self.length and not self.point.gradient

    @property
    def waiting(self) -> Point | None:
        return self.point if self.made < self.length and (not self.point.evaluated or self.needs_gradient) else None

    @property
    def done(self) -> bool:
        return self.made == self.length

    def advance(self) -> None:
        """Leave a point that has been evaluated."""
        if self.made < self.length and self.point.evaluated and not self.needs_gradient:
            self.made, self.point = self.made + 1, Point()


@dataclass(frozen=True)
class Arrival:
    """Rows that are submitted together: what they need, and how many of them share their first point."""

    at: int
    job: int
    lengths: tuple[int, ...]
    scored: bool
    guided: bool
    shared: int


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at=st.integers(0, 12),
        job=st.integers(0, 3),
        lengths=st.lists(st.integers(0, 5), min_size=1, max_size=7).map(tuple),
        scored=st.booleans(),
        guided=st.booleans(),
        shared=st.integers(0, 4),
    ),
    min_size=1,
    max_size=8,
)


def rows_of(arrival: Arrival) -> list[Plain]:
    point = Point()
    return [
        Plain(arrival.job, n, arrival.scored, arrival.guided, point if i < arrival.shared else Point())
        for i, n in enumerate(arrival.lengths)
    ]


@dataclass
class Tick:
    """What one tick of a played engine did. size: of its batch; waited: nodes that rows waited for before it;
    decoded: sizes of the batches that were scored; going: rows left."""

    size: int
    waited: int
    decoded: list[int]
    going: int
    ended: list[Plain]


def play(
    arrivals: list[Arrival], batch: int, decode: int, *, hold: bool = False, memory: int = 10**6
) -> Iterator[Tick]:
    """An engine of counters instead of tensors, around the scheduler. memory: the most rows that an evaluation takes
    before it fails and leaves the rest as it is, as the executor does."""
    scheduler: Scheduler[Plain] = Scheduler()
    tick = 0
    while tick <= max(arrival.at for arrival in arrivals) or len(scheduler):
        assert tick < 1000, "it never ends"
        for arrival in arrivals:
            if arrival.at == tick:
                scheduler.add(rows_of(arrival))
        waited = len({id(row.waiting) for row in scheduler.going if row.waiting is not None})
        chosen = next_batch(scheduler.going, batch)
        both = [*chosen.gradients, *chosen.evaluations]
        assert len({id(point) for point in both}) == len(both), "a node is computed once, whoever waits for it"
        for point in chosen.gradients:
            point.evaluated, point.gradient = point.evaluated or 1, True
        for point in chosen.evaluations[:memory]:
            assert not point.evaluated, "an evaluation is made once"
            point.evaluated = 1
        for row in scheduler.going:
            row.advance()
        ended, decoded = scheduler.collect(), []
        due = scheduler.due(decode, hold=hold)
        while due:
            scheduler.finish(due[:decode])
            ended, decoded, due = ended + due[:decode], [*decoded, len(due[:decode])], due[decode:]
        yield Tick(len(both), waited, decoded, len(scheduler.going), ended)
        tick += 1


played = settings(max_examples=60, deadline=None)
sizes = st.integers(1, 6)


@played
@given(arrivals=ARRIVALS, batch=sizes, decode=sizes)
def test_batches_are_full_while_there_is_work_and_never_too_large(
    arrivals: list[Arrival], batch: int, decode: int
) -> None:
    for tick in play(arrivals, batch, decode):
        assert tick.size == min(batch, tick.waited)


@played
@given(arrivals=ARRIVALS, batch=sizes, decode=sizes, hold=st.booleans())
def test_images_are_decoded_in_full_batches_while_rows_go_on(
    arrivals: list[Arrival], batch: int, decode: int, hold: bool
) -> None:
    for tick in play(arrivals, batch, decode, hold=hold):
        if tick.going:
            assert all(n == decode for n in tick.decoded)
            assert not (hold and tick.decoded)
        else:  # the rest, of which all but the last batch are full
            assert all(n == decode for n in tick.decoded[:-1])


@played
@given(arrivals=ARRIVALS, batch=sizes, decode=sizes, memory=st.integers(1, 6))
def test_everything_ends_once_and_after_no_more_ticks_than_the_work_takes(
    arrivals: list[Arrival], batch: int, decode: int, memory: int
) -> None:
    """Also where memory runs out and part of a batch stays undone."""
    ticks = list(play(arrivals, batch, decode, memory=memory))
    ended = [row for tick in ticks for row in tick.ended]
    assert len({id(row) for row in ended}) == len(ended) == sum(len(arrival.lengths) for arrival in arrivals)
    assert all(row.made == row.length for row in ended)
    # A tick makes a full batch of evaluations, or at least one of every row that goes on, whose longest takes 5.
    work = sum(sum(arrival.lengths) for arrival in arrivals)
    assert len(ticks) <= 13 + 5 + 1 + math.ceil(work / min(batch, memory))


@played
@given(arrivals=ARRIVALS, batch=sizes, late=st.integers(1, 30))
def test_no_row_starves_while_others_come(arrivals: list[Arrival], batch: int, late: int) -> None:
    """The first rows are served first: those that come after them, however many, do not delay them by one tick."""

    def ends(more: list[Arrival]) -> list[int]:
        """The tick at which each row of the first arrivals is done, in the order in which they end."""
        known = sum(len(arrival.lengths) for arrival in arrivals)
        found: list[int] = []
        for at, tick in enumerate(play([*arrivals, *more], batch, 1)):
            found += [at for row in tick.ended if row.job < 9]
        assert len(found) == known
        return found

    last = max(arrival.at for arrival in arrivals)
    crowd = [Arrival(last + at, 9, (3,) * 4, True, False, 0) for at in range(late)]
    assert ends(crowd) == ends([])


@played
@given(lanes=st.lists(st.integers(0, 2), min_size=1, max_size=20), size=sizes)
def test_a_batch_is_of_one_lane_and_drafts_go_before_evaluations(lanes: list[int], size: int) -> None:
    rows = [Plain(0, 1, True, drafted=lane) for lane in lanes]
    chosen = next_batch(rows, size)
    wanted = [row for row in rows if row.lane == chosen.lane][:size]
    assert chosen.evaluations == [row.point for row in wanted]
    assert chosen.lane == next((lane for lane in lanes if lane), 0)


def test_who_shares_a_node_with_a_row_that_needs_a_gradient_gets_its_evaluation_with_it() -> None:
    point, other = Point(), Point()
    rows = [Plain(0, 1, True, point=point), Plain(0, 1, True, guided=True, point=point), Plain(1, 1, True, point=other)]
    chosen = next_batch(rows, 5)
    assert (chosen.gradients, chosen.evaluations) == ([point], [other])
    point.evaluated = 1  # evaluated before, without a graph: the gradient is still to be taken
    assert next_batch(rows, 5).gradients == [point]
    point.gradient = True
    assert next_batch(rows, 5).gradients == []


def test_cancelled_rows_leave_and_others_stay() -> None:
    scheduler: Scheduler[Plain] = Scheduler()
    done, waiting = Plain(0, 0, True), Plain(0, 2, True)
    others = [Plain(1, 0, True), Plain(1, 2, False)]
    scheduler.add([waiting, done, *others])
    scheduler.collect()
    assert scheduler.remove_job(0) == [done, waiting]
    assert (scheduler.arrived, scheduler.going) == ([others[0]], [others[1]])
    assert len(scheduler) == 2
    assert scheduler.remove_job(7) == []


def test_it_needs_no_torch() -> None:
    code = "import sys, ttsnap.engine.scheduler; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
