"""Boards and charts as HTML: no model, no gradio."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.engine.test_drafts import made
from ttsnap import SeedPruning
from ttsnap.algorithms import make_algorithm
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.core.results import Event
from ttsnap.demo.form import aspect_of
from ttsnap.demo.html import RIGHT, thumbnail_uri
from ttsnap.demo.live import why_unspent
from ttsnap.demo.panels import (
    BOARD_COLUMNS,
    LEGEND_RIGHT,
    Hand,
    View,
    best_so_far,
    render_board,
    render_chart,
    render_stage,
    ticks,
)
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import search
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.request.limits import kernel_for
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.results.course import Course

GRID = Grid(tuple(np.linspace(1, 0, 11)))
VOID = ("img", "br", "path")


class Well(HTMLParser):
    """Checks that tags nest, and that none has a handler."""

    def __init__(self, html):
        super().__init__()
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def searched(name, budget="100nfe", **options):
    events = []
    engine = DryEngine(GRID, ("reward",))
    [result] = search(
        ["p"], make_algorithm(name, **options), engine, budget, on_event=events.append
    )
    return events, result


def seen(course, **more):
    return View("Seed pruning", course, Budget(nfe=40), 10.0, **more)


def begun(candidates=3, levels=(1.0, 0.5, 0.0)):
    """Candidates of seeds 5, 6, 7, ... on their way to step 1."""
    course = Course(levels)
    moved(course, list(range(candidates)), [-1] * candidates, 0)
    return course


def moved(course, uids, parents, step, drop=()):
    rows = {
        "start": [step] * len(uids),
        "stop": [step + 1] * len(uids),
        "seeds": [5 + uid for uid in uids],
    }
    course.move({"uids": uids, "parents": parents, **rows, "drop": [*drop]})


def scored(course, uid, step, score, nfe, right=None):
    course.nfe = nfe
    course.score(uid, step, [score], {} if right is None else {RIGHT: right})


@pytest.mark.parametrize(
    "name", ["best-of-n", "seed-pruning", "svdd", "code", "best-first", "zero-order"]
)
def test_every_moment_is_drawn(name):
    twice = {"keep": (0.5, 0.5), "levels": (0.9, 0.7)} if name == "seed-pruning" else {}
    events, result = searched(name, "150nfe", **twice)
    view, uri = seen(Course(GRID.levels), best="data:,"), thumbnail_uri(np.zeros((3, 8, 8)))
    for event in events:
        view.course.listen(event)
        if event.kind == "score":
            view.pictures[event.uids[0], event.step] = uri
        if event.kind == "start" or (event.kind == "score" and event.uids[0] % 32):
            continue
        assert view.course.over == (event.kind == "end")
        html = render_stage("p", [view])
        Well(html)
        columns = [int(column) for column in re.findall(r"grid-area:\d+/(\d+)", html)]
        assert max(columns, default=0) < BOARD_COLUMNS + 2
    best, uid = result.best, result.best.uid
    # branches share seeds
    own = f"{best.seed}" if result.particles.parent[uid] < 0 else f"{best.seed} ↳{uid}"
    [winner] = re.findall('tt-winner" style="([^"]*)" title="([^"]*)"', html)
    assert winner[0].endswith("/2"), "it is the first"
    assert winner[1].startswith(f"seed {own}, step 10")
    assert f"best: seed {own}, reward" in html
    if name == "seed-pruning":
        assert html.count("tt-pruned") > 0


def test_the_best_are_shown_the_most_promising_among_them():
    view = seen(begun(2 * BOARD_COLUMNS), hand=Hand())
    for uid in range(2 * BOARD_COLUMNS):
        view.course.score(uid, 1, [uid / 100])
        view.pictures[uid, 1] = f"data:,{uid}"
        stage = render_stage("p", [view])
        assert f"most promising: seed {5 + uid}" in stage
        assert f'data-uid="{uid}"' in stage
    shown = {int(uid) for uid in re.findall(r'data-uid="(\d+)"', render_board(view))}
    assert shown == set(range(BOARD_COLUMNS, 2 * BOARD_COLUMNS))
    view.course.drop([2 * BOARD_COLUMNS - 1])
    assert f"most promising: seed {5 + 2 * BOARD_COLUMNS - 2}" in render_stage("p", [view])


def test_text_is_escaped_everywhere():
    bad = '<script>alert(1)</script><img src=x onerror="y">&\''
    view = View(bad, Course((1.0, 0.0)), Budget(nfe=5), 10.0, note=bad)
    html = render_stage(bad, [view, view], bad)
    Well(html)
    assert not re.search("<(script|img)", html)
    assert html.count(escape(bad)) >= 6  # prompt, status, and names and notes of both


def test_a_page_makes_room_for_the_shape_of_images():
    wide = EngineSpec(ModelOptions(), ("reward",), call={"width": 24, "height": 16})
    assert aspect_of(SearchRequest((Prompt("p"),), wide, "best-of-n", Budget(nfe=8))) == 1.5


def test_the_pure_parts_need_neither_gradio_nor_torch():
    names = ["panels", "form", "html", "worker", "live"]
    code = f"import sys\nfor n in {names!r}: __import__('ttsnap.demo.' + n)\n"
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'gradio', 'diffusers')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_best_so_far_is_a_step_line_of_estimates_and_then_of_finished_images():
    course = begun()
    for uid, nfe, score in ((0, 10, 0.3), (1, 20, 0.9), (2, 20, 0.5)):
        scored(course, uid, 1, score, nfe)
    moved(course, [1, 2], [1, 2], 1, drop=[0])
    scored(course, 1, 2, 0.8, 30, right=True)
    scored(course, 2, 2, 0.4, 40, right=False)
    course.end()
    assert [(m.nfe, m.value, m.step == 2) for m in best_so_far(course)] == [
        (10, 0.3, False),
        (20, 0.9, False),
        (30, 0.8, True),
        (40, 0.8, True),
        (40, 0.8, True),
    ]
    html = render_chart([("Seed pruning", course)], 40)
    Well(html)
    assert LEGEND_RIGHT in html
    kinds = ("hope", "step", "faint", "full", "hollow", "end")
    assert [html.count(f'class="tt-{name} ') for name in kinds] == [1] * 6
    assert [f">{x}</span>" in html for x in (0, 10, 20, 30, 40)] == [True] * 5
    stage = render_stage("p", [seen(course)])
    assert f"seed 6, step 2: .800, {RIGHT}" in stage
    assert f"seed 7, step 2: .400, not {RIGHT}" in stage


def test_two_searches_are_drawn_on_one_scale_within_the_plot():
    courses = [begun(1, (1.0, 0.0)), begun(1, (1.0, 0.0))]
    for course, nfe, score in zip(courses, (114, 120), (0.9, 0.7), strict=True):
        scored(course, 0, 1, score, nfe, right=score > 0.8)
        course.end()
    html = render_chart([("Seed pruning", courses[0]), ("Best-of-N", courses[1])], 120)
    Well(html)
    assert "Best-of-N <b>.700</b>" in html
    assert "Seed pruning <b>.900</b>" in html
    # The dot at the end of a line means what the legend says: hollow where the image is wrong, full
    # where it is right.
    assert re.findall(r'class="tt-end (tt-\w+)', html) == ["tt-hollow", "tt-full"]
    hoped = begun(1)
    hoped.score(0, 1, [0.5])
    assert re.findall(r'class="tt-end (tt-\w+)', render_chart([("Search", hoped)], 120)) == [
        "tt-faint"
    ]
    points = [
        (float(x), float(y))
        for x, y in re.findall(r'tt-end tt-\w+ tt-c\d" d="M([\d.]+) ([\d.]+)h0', html)
    ]
    assert len(points) == 2
    assert all(1 < x < 99 and 3 < y < 97 for x, y in points)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 120, [0, 20, 40, 60, 80, 100, 120]),
        (0.61, 0.87, [0.6, 0.7, 0.8, 0.9]),
        (0.5, 0.5, [0.4, 0.6]),
        (0, 0, [0, 0.25]),
        (-3, 1e6, [-500_000, 0, 500_000, 1_000_000]),
    ],
)
def test_ticks_are_round(low, high, found):
    values = ticks(low, high, 6 if high == 120 else 4)
    assert values[0] <= low
    assert values[-1] >= high
    assert values[: len(found)] == pytest.approx(found)


def test_a_column_says_whom_a_click_leads_and_at_once_what_was_asked():
    view = seen(begun())
    assert "data-uid" not in render_board(view)  # nobody leads a comparison
    view.hand = Hand(asked={1: "drop"})
    view.course.score(2, 1, [0.5])
    view.course.drop([2])
    html = render_board(view)
    Well(html)
    assert re.findall(r'data-uid="(\d+)" data-asked="(\w*)"', html) == [("0", ""), ("1", "drop")]
    moved(view.course, [0], [0], 1)
    view.course.score(0, 1, [0.7])
    html = render_board(view)
    assert html.count('data-uid="0"') == 2 - html.count('data-uid="0" data-asked'), "one foot"
    view.course.end()
    assert "data-uid" not in render_board(view)


def asked_for(algorithm, nfe):
    spec = EngineSpec(ModelOptions(), ("reward",), SamplerOptions(kernel_for(algorithm)))
    return prepare(SearchRequest((Prompt("p"),), spec, algorithm, Budget(nfe=nfe)), ModelDefaults())


def test_what_is_left_of_a_budget_is_explained():
    _, result = searched("svdd", "90nfe")

    def why(algorithm, nfe, spent, budget=None):
        asked = asked_for(algorithm, nfe)
        return why_unspent(asked, budget or asked.budget, GRID, spent)

    text = why("svdd", 90, result.spent)
    sizes = [int(n) for n in re.findall(r"n = (\d+)", text)]
    assert text.startswith(f"SVDD ended after {result.spent.nfe} of 90 evaluations")
    assert sizes[1] == sizes[0] + 1
    assert int(text.rstrip(".").split()[-1]) > 90
    assert why("best-of-n", 100, replace(result.spent, cost=Cost(100))) == ""
    few = replace(result.spent, cost=Cost(40))
    assert "runs with n = 4" in why("fk-steering", 100, few)
    for cap in ("3s", "10decodes"):  # another cap held, about which the search itself says enough
        held = replace(few, cost=Cost(nfe=40, decodes=10), seconds=3.0)
        capped = replace(Budget.parse(cap), nfe=100)
        assert why("fk-steering", 100, held, capped) == ""


def test_drafts_are_called_so():
    live, events = made(), list[Event]()
    search(["a"], SeedPruning(12, keep=(0.5,), steps=(3,)), live, on_event=events.append)
    view = seen(Course(live.grid.levels))
    for event in events:
        view.course.listen(event)
    html = render_board(view)
    assert ">draft<small>noise 1.00" in html
    assert ">step 3<small>" in html
    assert ">step 0<" not in html
