"""The drawing of a search as values: the same while it runs and after, best candidates first."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnap.algorithms import make_algorithm
from ttsnap.core.grid import Grid
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import search
from ttsnap.results.course import Course, drawn

GRID = Grid(tuple(np.linspace(1, 0, 11)))
BRANCHING = [
    "svdd",
    "code",
    "smc",
    "rbf",
    "best-first",
    "search-over-paths",
    "zero-order",
    "depth-first",
    "nested",
]


def searched(name, budget="200nfe", **options):
    events = []
    engine = DryEngine(GRID, ("reward",))
    [result] = search(
        ["p"], make_algorithm(name, **options), engine, budget, on_event=events.append
    )
    return events, result


def check_places(drawing, across):
    """Nothing lies on another, or stands too far right, and a column is of one seed."""
    cells = drawing.cells.values()
    assert len({(cell.band, cell.column, cell.row) for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.column < across
        assert drawing.bands[cell.band][cell.row] == cell.look[1]
        assert drawing.heads[cell.band, cell.column].seed == cell.candidate.seed


@pytest.mark.parametrize("name", BRANCHING)
def test_the_winner_stands_on_the_left_below_all_that_it_came_of(name):
    _, result = searched(name)
    p, course = result.particles, Course.of(result)
    line = {result.best.uid}
    uid = result.best.uid
    while p.parent[uid] >= 0:
        uid = int(p.parent[uid])
        line.add(uid)
    for across, lines in ((1, 1), (4, 1), (5, 30), (16, 30), (500, 500)):
        drawing = drawn(course, across, lines)
        check_places(drawing, across)
        rows = sum(map(len, drawing.bands))
        assert rows <= lines or len(drawing.bands) == 1
        every = sum(len(one.scores) for one in course.candidates.values())
        assert drawing.whole == (len(drawing.cells) == every and rows <= lines)
        assert drawing.whole or lines < 500
        won = drawing.cells[result.best.uid, GRID.steps]
        assert (won.band, won.column, won.place) == (0, 0, 0)
        steps = {cell.look[1] for cell in drawing.cells.values() if cell.candidate.uid in line}
        left = [cell for cell in drawing.cells.values() if (cell.band, cell.column) == (0, 0)]
        assert steps == {cell.look[1] for cell in left if cell.candidate.uid in line}
        dim = {look for look, cell in drawing.cells.items() if cell.dim}
        dropped = {one.uid for one in course.candidates.values() if one.state == "dropped"}
        assert dim <= {(uid, course.candidates[uid].reached) for uid in dropped}


@pytest.mark.parametrize("name", ["best-of-n", "seed-pruning", *BRANCHING])
def test_a_search_under_way_is_drawn_as_it_is_after(name):
    events, result = searched(name)
    live = Course(GRID.levels)
    for event in events:
        live.listen(event)
        if event.kind == "score" and event.uids[0] % 16 == 0:
            check_places(drawn(live, 18, 1), 18)
    best = live.best
    assert best is not None
    assert best.uid == result.best.uid
    assert best.rank == result.best.reward
    live.end(result)
    after = Course.of(result)
    assert [one.uid for one in live.ranked()] == [one.uid for one in after.ranked()]
    assert live.nfe == after.nfe
    assert (live.decodes, live.reward_calls) == (after.decodes, after.reward_calls)
    for across, lines in ((18, 1), (6, 9)):
        one, other = (drawn(course, across, lines) for course in (live, after))
        assert (one.bands, one.names, one.words) == (other.bands, other.names, other.words)
        assert one.cells.keys() == other.cells.keys()
        for look, cell in one.cells.items():
            same = other.cells[look]
            assert cell[:4] == same[:4]
            assert cell[6:] == same[6:]


def test_the_best_candidates_come_first_at_every_moment():
    events, result = searched("seed-pruning", "400nfe", keep=(0.5, 0.5), levels=(0.9, 0.7))
    course = Course(GRID.levels)
    for event in events:
        course.listen(event)
        cells = drawn(course, 18, 1).cells.values()
        feet = {cell.column: cell for cell in sorted(cells, key=lambda cell: cell.row)}
        ranks = [
            (-one.reached, one.state == "dropped", -one.rank)
            for one in (feet[column].candidate for column in sorted(feet))
        ]
        assert ranks == sorted(ranks)
    assert feet[0].candidate.uid == result.best.uid


def test_who_is_on_the_way_may_be_led_and_adds_no_row():
    course = Course(GRID.levels)
    rows = {"start": [0] * 3, "seeds": [5, 6, 7], "drop": []}
    course.move({"uids": [0, 1, 2], "parents": [-1] * 3, "stop": [4, 4, 2], **rows})
    course.score(1, 4, [0.5], {"strictly right": True})
    drawing = drawn(course, 18, 1)
    assert drawing.bands == [(4,)], "the row of step 2 would vanish again"
    assert [cell.led for cell in drawing.cells.values() if cell.row == 0] == [1, 0, 2]
    course.drop([0])
    assert drawn(course, 18, 1).cells[1, 4].led == 1
    assert [cell.candidate.uid for cell in drawn(course, 18, 1).cells.values()] == [1, 2]
    course.end()
    assert {cell.led for cell in drawn(course, 18, 1).cells.values()} == {None}
    score = course.candidates[1].scores[4]
    assert (score.right, score.answers) == (True, {"strictly right": True})


def test_ties_go_to_the_first_and_failures_never_win():
    course = Course((1.0, 0.0))
    rows = {"start": [0] * 3, "seeds": [5, 6, 7], "drop": []}
    course.move({"uids": [0, 1, 2], "parents": [-1] * 3, "stop": [1] * 3, **rows})
    course.score(2, 1, [float("nan")])
    assert course.best is None
    for uid in (1, 0, 2):
        course.score(uid, 1, [0.5])
    assert course.best is course.candidates[0]
    course.score(99, 1, [1.0])  # unknown: ignored
    assert 99 not in course.candidates


def test_last_looks_alone_are_a_grid_best_first():
    events, _ = searched("svdd")
    course = Course(GRID.levels)
    for event in events[: len(events) // 2]:
        course.listen(event)
    drawing = drawn(course, 4, 6, last=True)
    cells = sorted(drawing.cells.values(), key=lambda cell: (cell.band, cell.column))
    assert {cell.row for cell in cells} == {0}
    assert [(cell.band, cell.column) for cell in cells] == [divmod(i, 4) for i in range(24)]
    order = [one.uid for one in course.ranked()]
    places = [order.index(cell.candidate.uid) for cell in cells]
    assert places == sorted(places)
    assert all(cell.score is not None for cell in cells)
