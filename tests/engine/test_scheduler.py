"""Batches: whom the scheduler serves, so that nobody waits long for a crowd, and how many rows a
call takes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap.core.memory import NotEnoughMemoryError
from ttsnap.engine.batch_sizes import BatchSizes, bucket_of, buckets
from ttsnap.engine.fair import FairShare, FairTurns, Stage
from ttsnap.engine.scheduler import Scheduler, next_batch


@dataclass(eq=False)
class Point:
    """Where a row is; rows that share it wait for the same evaluation."""

    evaluated: bool = False
    gradient: bool = False


@dataclass(eq=False)
class Plain:
    """A row that needs so many evaluations, the first at a point that it may share."""

    job: int
    length: int
    scored: bool = True
    guided: bool = False
    at: Stage = Stage.STEP
    point: Point = field(default_factory=Point)
    made: int = 0

    @property
    def stage(self):
        return Stage.STEP if self.done else self.at

    @property
    def needs_gradient(self):
        return self.guided and not self.done and not self.point.gradient

    @property
    def waiting(self):
        return (
            self.point
            if not self.done and (not self.point.evaluated or self.needs_gradient)
            else None
        )

    @property
    def done(self):
        return self.made == self.length

    def advance(self):
        """Leave a point that has been evaluated."""
        if not self.done and self.waiting is None:
            self.made, self.point = self.made + 1, Point()


@dataclass(frozen=True)
class Arrival:
    """Rows that are submitted together: what they need, and how many of them share their first
    point."""

    at: int
    job: int
    lengths: tuple[int, ...]
    scored: bool = True
    guided: bool = False
    shared: int = 0
    stages: tuple[Stage, ...] = (Stage.STEP,)

    def rows(self):
        points = [Point()] * self.shared + [Point() for _ in self.lengths]
        parts = zip(self.lengths, itertools.cycle(self.stages), points, strict=False)
        return [Plain(self.job, n, self.scored, self.guided, at, point) for n, at, point in parts]


JOBS = 4
LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=7).map(tuple)
ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.integers(0, 12),
        st.integers(0, JOBS - 1),
        LENGTHS,
        st.booleans(),
        st.booleans(),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=8,
)
DRAFTING = st.lists(
    st.builds(
        Arrival,
        st.integers(0, 12),
        st.integers(0, JOBS - 1),
        LENGTHS,
        stages=st.lists(st.sampled_from(Stage), min_size=1, max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=8,
)
SIZES = st.integers(1, 7)
played = settings(max_examples=60, deadline=None)


@dataclass
class Tick:
    """got: evaluations of each job; wanting: jobs that still waited; places: what a full batch
    holds; decoded: sizes of the batches that were scored; going: rows left."""

    got: Counter[int]
    wanting: frozenset[int]
    places: int
    decoded: list[int]
    going: int
    ended: list[Plain]


def play(
    arrivals,
    batch,
    decode=1,
    *,
    hold=False,
    memory=10**6,
    turns=None,
):
    """An engine of counters instead of tensors, around the scheduler. memory: the most rows that an
    evaluation takes before it fails and leaves the rest as it is, as the executor does."""
    scheduler = Scheduler(turns)
    tick = 0
    while tick <= max(arrival.at for arrival in arrivals) or len(scheduler):
        assert tick < 1000, "it never ends"
        scheduler.add([row for arrival in arrivals if arrival.at == tick for row in arrival.rows()])
        waiting = {id(row.waiting): row for row in scheduler.going if row.waiting is not None}
        places = min(batch, len(waiting))
        chosen = next_batch(scheduler.first(batch), batch)
        # each once
        served = [waiting.pop(id(point)) for point in (*chosen.gradients, *chosen.evaluations)]
        assert {row.stage for row in served} <= {chosen.stage}
        for point in chosen.gradients:
            point.evaluated = point.gradient = True
        for point in chosen.evaluations[:memory]:
            assert not point.evaluated, "an evaluation is made once"
            point.evaluated = True
        for row in scheduler.going:
            row.advance()
        ended, decoded = scheduler.collect(), []
        due = scheduler.due(decode, hold=hold)
        while due:
            scheduler.leave(due[:decode])
            ended, decoded, due = ended + due[:decode], [*decoded, len(due[:decode])], due[decode:]
        got, wanting = (
            Counter(row.job for row in served),
            frozenset(row.job for row in waiting.values()),
        )
        yield Tick(got, wanting, places, decoded, len(scheduler.going), ended)
        tick += 1


def all_end(arrivals, ticks):
    ended = [row for tick in ticks for row in tick.ended]
    assert (
        len({id(row) for row in ended})
        == len(ended)
        == sum(len(arrival.lengths) for arrival in arrivals)
    )
    assert all(row.done for row in ended)


@played
@given(arrivals=ARRIVALS, batch=SIZES, decode=SIZES, hold=st.booleans(), memory=st.integers(1, 6))
def test_batches_are_full_and_all_ends_after_no_more_ticks_than_the_work_takes(
    arrivals, batch, decode, hold, memory
):
    """Also where memory runs out and part of a batch stays undone."""
    ticks = list(play(arrivals, batch, decode, hold=hold, memory=memory))
    for tick in ticks:
        assert tick.got.total() == tick.places
        if tick.going:
            assert all(n == decode for n in tick.decoded)
            assert not (hold and tick.decoded)
        else:  # the rest, of which all but the last batch are full
            assert all(n == decode for n in tick.decoded[:-1])
    all_end(arrivals, ticks)
    # A tick makes a full batch of evaluations, or at least one of every row that goes on, whose
    # longest takes 5.
    work = sum(sum(arrival.lengths) for arrival in arrivals)
    assert len(ticks) <= 13 + 5 + 1 + math.ceil(work / min(batch, memory))


@settings(max_examples=30, deadline=None)
@given(arrivals=ARRIVALS, batch=SIZES, late=st.integers(1, 12))
def test_no_row_starves_while_others_come(arrivals, batch, late):
    """The first rows are served first: those that come after them, however many, do not delay them
    by one tick."""

    def ends(more):
        """The tick at which each row of the first arrivals is done, in the order in which they
        end."""
        ticks = enumerate(play([*arrivals, *more], batch))
        return [at for at, tick in ticks for row in tick.ended if row.job < JOBS]

    last = max(arrival.at for arrival in arrivals)
    assert ends([Arrival(last + at, JOBS, (3,) * 4) for at in range(late)]) == ends([])


@played
@given(stages=st.lists(st.sampled_from(Stage), min_size=1, max_size=20), size=SIZES)
def test_a_batch_is_of_one_stage_and_who_has_not_begun_goes_first(stages, size):
    rows = [Plain(0, 1, at=stage) for stage in stages]
    chosen = next_batch(rows, size)
    assert chosen.evaluations == [row.point for row in rows if row.stage == chosen.stage][:size]
    assert chosen.stage == min(stages)


def test_who_shares_a_node_with_a_row_that_needs_a_gradient_gets_its_evaluation_with_it():
    point, other = Point(), Point()
    rows = [
        Plain(0, 1, point=point),
        Plain(0, 1, guided=True, point=point),
        Plain(1, 1, point=other),
    ]
    chosen = next_batch(rows, 5)
    assert (chosen.gradients, chosen.evaluations) == ([point], [other])
    point.evaluated = True  # before, without a graph: the gradient is still to be taken
    assert next_batch(rows, 5).gradients == [point]
    point.gradient = True
    assert next_batch(rows, 5).gradients == []


def test_cancelled_rows_leave_and_others_stay():
    scheduler = Scheduler()
    done, waiting = Plain(0, 0), Plain(0, 2)
    others = [Plain(1, 0), Plain(1, 2, scored=False)]
    scheduler.add([waiting, done, *others])
    scheduler.collect()
    assert scheduler.remove_job(0) == [done, waiting]
    assert (scheduler.arrived, scheduler.going, len(scheduler)) == ([others[0]], [others[1]], 2)


# --- fair turns -----------------------------------------------------------------------------------


@played
@given(
    arrivals=ARRIVALS,
    size=SIZES,
    weights=st.lists(st.sampled_from([0.5, 1, 2, 3]), min_size=JOBS, max_size=JOBS),
)
def test_what_two_waiting_jobs_get_differs_by_at_most_a_turn_of_each_and_no_place_is_left_empty(
    arrivals, size, weights
):
    """The stated bound, over every stretch of ticks in which both wait for more than they get."""
    turns = FairTurns()
    turns.share.weights = dict(enumerate(weights))
    ticks = list(play(arrivals, size, turns=turns))
    assert all(tick.got.total() == tick.places for tick in ticks)
    for a, b in itertools.combinations(range(JOBS), 2):
        bound = 1 / weights[a] + 1 / weights[b] + 1e-9
        # The difference is a walk; within one stretch, its highest and lowest points lie no further
        # apart than that.
        walk = [0.0]
        for tick in ticks:
            if not {a, b} <= tick.wanting:
                walk = [0.0]
                continue
            walk.append(walk[-1] + tick.got[a] / weights[a] - tick.got[b] / weights[b])
            assert max(walk) - min(walk) <= bound


@played
@given(arrivals=DRAFTING, size=SIZES)
def test_with_turns_and_drafts_everything_ends(arrivals, size):
    all_end(arrivals, list(play(arrivals, size, turns=FairTurns())))


@settings(max_examples=30, deadline=None)
@given(others=st.integers(1, 6), at=st.integers(0, 5), size=SIZES, length=st.integers(1, 3))
def test_a_small_job_does_not_wait_for_large_ones_however_large(others, at, size, length):
    """Between two evaluations of one row, each of the others gets two turns at most, however many
    rows it has."""
    gap = math.ceil((2 * others + 1) / size)
    crowds = [Arrival(0, job, (1,) * (10 + 2 * gap * length * size)) for job in range(others)]
    ticks = itertools.islice(
        play([*crowds, Arrival(at, 99, (length,))], size, turns=FairTurns()), at + gap * length
    )
    assert sum(tick.got[99] for tick in ticks) == length


def test_rows_of_another_stage_come_in_turn():
    crowd, other = Arrival(0, 0, (9,) * 4, stages=(Stage.DRAFT,)), Arrival(0, 1, (9,))
    ticks = itertools.islice(play([crowd, other], 2, turns=FairTurns()), 4)
    assert [set(tick.got) for tick in ticks] == [{0}, {1}, {1}, {0}]


def served(share, turns):
    found = []
    for _ in range(turns):
        found.append(share.first())
        share.serve(found[-1])
    return "".join(found)


def test_who_comes_late_has_no_claim_and_who_comes_back_at_once_is_not_new():
    share = FairShare()
    share.wait("o")
    served(share, 100)
    share.wait("on")
    assert served(share, 4) == "nono"
    share.serve("o", 10.0)
    share.leave("o")
    share.wait("no")
    assert served(share, 9) == "n" * 9


def test_a_crowd_is_not_held_to_what_its_first_one_got_alone():
    share = FairShare()
    share.wait("co")
    share.serve("c", 12.0)
    share.weigh("c", 6.0)
    found = served(share, 9)
    assert found.startswith("oo"), "twelve turns of one are two of each of the six"
    assert found.count("o") == 3
    share.wait([])
    share.weigh("c", 0.5)
    share.wait("co")
    assert share.first() == "o", "also of those that are away for a moment"


def test_what_it_remembers_of_those_who_are_gone_does_not_grow():
    turns = FairTurns()
    for job in range(1000):
        row = Plain(job, 1)
        assert turns.choose([row, Plain(-1, 1)], 2)[0] is row
    assert len(turns.share._served) + len(turns.share._waiting) < 10


def test_all_rows_of_a_node_come_with_it_and_it_counts_once():
    node = Point()
    rows = [Plain(0, 1, point=node), Plain(0, 1, point=node, guided=True), Plain(0, 1), Plain(1, 1)]
    assert FairTurns().choose(rows, 2) == [rows[0], rows[1], rows[3]]


def test_a_job_that_has_nothing_going_is_not_kept_waiting_for_its_scores():
    small, large = Plain(0, 0), [Plain(1, n) for n in range(9)]
    scheduler = Scheduler[Plain](FairTurns())
    scheduler.add([small, *large])
    scheduler.collect()
    assert scheduler.due(8) == scheduler.due(8, hold=True) == [small, large[0]]


# --- sizes ----------------------------------------------------------------------------------------


Given = tuple[int | None, int | None]


def sizes(denoise=8, decode=4):
    """The sizes, and what they count: what they asked to be found, too."""
    counts = Counter()

    def find(*asked):
        counts[asked] += 1
        return asked[0] or 6, asked[1] or 3

    return BatchSizes(denoise, decode, find, counts), counts


def fits(most, batch):
    """A call that takes at most so many rows."""
    if len(batch) > most:
        raise torch.OutOfMemoryError(f"{len(batch)} rows")
    return list(batch)


@pytest.mark.parametrize(
    ("asked", "found"), [((None, None), (6, 3)), ((2, None), (2, 3)), ((None, 9), (6, 9))]
)
def test_what_was_not_given_is_found_once(asked, found):
    own, counts = sizes(*asked)
    assert not counts
    assert (own.batch_size, own.decode_batch_size, own.batch_size) == (*found, found[0])
    assert counts == {asked: 1}


def test_calls_are_halved_from_what_was_tried_and_for_good():
    own, counts = sizes()
    assert own.run(range(20), list) == (list(range(8)), 8)
    assert own.run(range(20), partial(fits, 3)) == ([0, 1], 2)  # 8, 4, 2
    assert (own.batch_size, own.decode_batch_size, counts) == (2, 4, {"out_of_memory": 2})
    own, counts = sizes()
    assert own.run([7, 8, 9], partial(fits, 1)) == ([7], 1)  # 3, 1: less than the size were there
    assert (own.batch_size, counts) == (1, {"out_of_memory": 1})
    assert own.run(range(9), partial(fits, 1), decoding=True) == ([0], 1)  # 4, 2, 1
    assert (own.batch_size, own.decode_batch_size) == (1, 1)
    with pytest.raises(NotEnoughMemoryError):
        own.run(range(8), partial(fits, 0))
    for none in ((0, None), (None, -1)):
        with pytest.raises(ValueError, match="least 1"):
            sizes(*none)


@given(st.integers(1, 500), st.data())
def test_a_bucket_is_a_power_of_two_or_the_batch_itself(batch_size, data):
    n, sizes = data.draw(st.integers(1, batch_size)), buckets(batch_size)
    assert n <= bucket_of(n, sizes) < 2 * n
    assert set(sizes) == {batch_size, *(2**i for i in range(10) if 2**i < batch_size)}
    for none in (0, batch_size + 1):
        with pytest.raises(ValueError, match=f"holds {none} rows"):
            bucket_of(none, sizes)
