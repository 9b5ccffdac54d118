"""Fair turns on plain objects: nobody gets more than the stated bound, nobody waits for a crowd, no place is wasted."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap.engine.fair import FairShare, FairTurns
from ttsnap.engine.scheduler import Scheduler, next_batch


@dataclass(eq=False)
class Need:
    """A row that needs so many evaluations, each at a node of its own."""

    job: int
    left: int
    lane: int = 0
    node: object = field(default_factory=object)
    scored: bool = True
    needs_gradient: bool = False

    @property
    def waiting(self) -> object | None:
        return self.node if self.left else None

    @property
    def done(self) -> bool:
        return not self.left

    def evaluate(self) -> None:
        self.left, self.node = self.left - 1, object()


@dataclass(frozen=True)
class Crowd:
    """Rows of one job, which all come at one tick: how many, and how many evaluations each needs."""

    job: int
    at: int
    rows: int
    length: int


@dataclass(frozen=True)
class Tick:
    """What each job got in one batch, and which jobs still waited for more after it."""

    got: Counter[int]
    wanting: frozenset[int]
    places: int


def play(
    crowds: Sequence[Crowd], size: int, weights: dict[int, float], lanes: Sequence[int] = (0,), most: int = 1000
) -> list[Tick]:
    """An engine of counters around fair turns, for at most so many ticks. lanes: of the rows, in turn."""
    turns = FairTurns()
    turns.share.weights |= weights
    rows: list[Need] = []
    ticks: list[Tick] = []
    while len(ticks) < most and (len(ticks) <= max(crowd.at for crowd in crowds) or rows):
        for crowd in crowds:
            if crowd.at == len(ticks):
                rows += [Need(crowd.job, crowd.length, lanes[i % len(lanes)]) for i in range(crowd.rows)]
        chosen = turns.choose(rows, size)
        assert len({row.lane for row in chosen}) <= 1, "a batch is of one lane"
        left = {id(row) for row in rows} - {id(row) for row in chosen}
        wanting, places = frozenset(row.job for row in rows if id(row) in left), min(size, len(rows))
        for row in chosen:
            row.evaluate()
        ticks.append(Tick(Counter(row.job for row in chosen), wanting, places))
        rows = [row for row in rows if row.left]
    return ticks


JOBS = 4
CROWDS = st.lists(
    st.builds(Crowd, st.integers(0, JOBS - 1), st.integers(0, 10), st.integers(1, 20), st.integers(1, 5)),
    min_size=1,
    max_size=8,
)
WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=JOBS, max_size=JOBS)
SIZES = st.integers(1, 7)
played = settings(max_examples=150, deadline=None)


@played
@given(crowds=CROWDS, size=SIZES, weights=WEIGHTS)
def test_what_two_waiting_jobs_get_differs_by_at_most_a_turn_of_each(
    crowds: list[Crowd], size: int, weights: list[float]
) -> None:
    """The stated bound, over every stretch of ticks in which both wait for more than they get."""
    ticks = play(crowds, size, dict(enumerate(weights)))
    for a, b in itertools.combinations(range(JOBS), 2):
        bound = 1 / weights[a] + 1 / weights[b] + 1e-9
        # The difference is a walk; within one stretch, its highest and lowest points lie no further apart than that.
        walk = [0.0]
        for tick in ticks:
            if not {a, b} <= tick.wanting:
                walk = [0.0]
                continue
            walk.append(walk[-1] + tick.got[a] / weights[a] - tick.got[b] / weights[b])
            assert max(walk) - min(walk) <= bound


@played
@given(crowds=CROWDS, size=SIZES)
def test_no_place_is_left_empty_while_somebody_waits(crowds: list[Crowd], size: int) -> None:
    for tick in play(crowds, size, {}):
        assert tick.got.total() == tick.places


@played
@given(others=st.integers(1, 6), at=st.integers(0, 5), size=SIZES, length=st.integers(1, 3))
def test_a_small_job_does_not_wait_for_large_ones_however_large(others: int, at: int, size: int, length: int) -> None:
    """Between two evaluations of one row, each of the others gets two turns at most, however many rows it has."""
    gap = math.ceil((2 * others + 1) / size)
    crowds = [Crowd(job, 0, 10 + 2 * gap * length * size, 1) for job in range(others)]
    ticks = play([*crowds, Crowd(99, at, 1, length)], size, {}, most=at + gap * length)
    assert sum(tick.got[99] for tick in ticks) == length


@played
@given(crowds=CROWDS, size=SIZES, lanes=st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_with_drafts_everything_ends(crowds: list[Crowd], size: int, lanes: list[int]) -> None:
    ticks = play(crowds, size, {}, lanes)
    work = Counter(dict.fromkeys(range(JOBS), 0))
    for crowd in crowds:
        work[crowd.job] += crowd.rows * crowd.length
    assert sum((tick.got for tick in ticks), Counter()) == +work


def test_rows_of_another_lane_come_in_turn() -> None:
    turns, rows = FairTurns(), [*(Need(0, 9, lane=1) for _ in range(4)), Need(1, 9)]
    got = []
    for _ in range(4):
        chosen = turns.choose(rows, 2)
        got.append({row.job for row in chosen})
        for row in chosen:
            row.evaluate()
    assert got == [{0}, {1}, {1}, {0}]


def test_who_comes_late_has_no_claim_on_what_was_served_before() -> None:
    share: FairShare[str] = FairShare()
    share.wait(["old"])
    for _ in range(100):
        share.serve("old")
    share.wait(["old", "new"])
    served = []
    for _ in range(4):
        served.append(share.first())
        share.serve(served[-1])
    assert served == ["new", "old", "new", "old"]


def test_who_leaves_and_comes_back_at_once_is_not_new() -> None:
    share: FairShare[str] = FairShare()
    share.wait(["a", "b"])
    share.serve("a", 10.0)
    share.leave("a")
    share.wait(["b", "a"])
    for _ in range(9):
        assert share.first() == "b"
        share.serve("b")


def test_a_crowd_is_not_held_to_what_its_first_one_got_alone() -> None:
    share: FairShare[str] = FairShare()
    share.wait(["crowd", "other"])
    share.serve("crowd", 12.0)
    share.weigh("crowd", 6.0)
    served = []
    for _ in range(9):
        served.append(share.first())
        share.serve(served[-1])
    assert served[:2] == ["other"] * 2, "twelve turns of one are two of each of the six"
    assert served.count("other") == 3
    share.wait([])
    share.weigh("crowd", 0.5)
    share.wait(["crowd", "other"])
    assert share.first() == "other", "also of those that are away for a moment"


def test_what_it_remembers_of_those_who_are_gone_does_not_grow() -> None:
    turns = FairTurns()
    for job in range(1000):
        row = Need(job, 1)
        assert turns.choose([row, Need(-1, 1)], 2)[0] is row
    assert len(turns.share._served) + len(turns.share._waiting) < 10


def test_weights_share_the_places_out() -> None:
    ticks = play([Crowd(0, 0, 40, 3), Crowd(1, 0, 40, 3)], 4, {0: 3.0})
    assert [tick.got for tick in ticks[:5]] == [Counter({0: 3, 1: 1})] * 5


def test_all_rows_of_a_node_come_with_it_and_it_counts_once() -> None:
    node = object()
    rows = [Need(0, 1, node=node), Need(0, 1, node=node), Need(0, 1), Need(1, 1)]
    assert FairTurns().choose(rows, 2) == [rows[0], rows[1], rows[3]]
    guided = [Need(0, 1, node=node), Need(0, 1, node=node, needs_gradient=True)]
    assert next_batch(FairTurns().choose(guided, 1), 1).gradients == [node]


def test_a_job_that_has_nothing_going_is_not_kept_waiting_for_its_scores() -> None:
    scheduler: Scheduler[Need] = Scheduler(FairTurns())
    small, large = Need(0, 0), [Need(1, 3) for _ in range(9)]
    scheduler.add([small, *large])
    scheduler.collect()
    assert scheduler.due(8) == [small]
    assert scheduler.due(8, hold=True) == [small]
    patient: Scheduler[Need] = Scheduler()
    patient.add([small, *large])
    patient.collect()
    assert patient.due(8) == [], "by default images are decoded in full batches while the denoiser has work"
