"""Boards from events and from traces, and the HTML made of them: no model, no gradio."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from tests.engine.test_drafts import made
from ttsnap import SeedPruning
from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.by_hand import UserCommand
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.core.results import Event, Result
from ttsnap.demo.board import COLUMNS, Board
from ttsnap.demo.board_html import render_board
from ttsnap.demo.chart import LEGEND_RIGHT, render_chart, ticks
from ttsnap.demo.form import aspect_of
from ttsnap.demo.html import thumbnail_uri
from ttsnap.demo.live import why_unspent
from ttsnap.demo.panels import View, render_stage
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import search
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.request.allowlist import kernel_for
from ttsnap.request.request import EngineSpec, ModelDefaults, Prepared, SearchRequest, prepare
from ttsnap.results.lineage import CandidateAtStep

GRID = Grid(tuple(np.linspace(1, 0, 11)))
VOID = ("img", "br", "path")


class Well(HTMLParser):
    """Checks that tags nest, and that none has a handler."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def searched(name: str, budget: str = "100nfe", **options: Any) -> tuple[list[Event], Result]:
    events: list[Event] = []
    engine = DryEngine(GRID, ("reward",))
    [result] = search(
        ["p"], make_algorithm(name, **options), engine, budget, on_event=events.append
    )
    return events, result


def begun(candidates: int = 3, levels: tuple[float, ...] = (1.0, 0.5, 0.0)) -> Board:
    """Candidates of seeds 5, 6, 7, ... on their way to step 1."""
    board = Board(levels)
    moved(board, list(range(candidates)), [-1] * candidates, 0)
    return board


def moved(board: Board, uids: list[int], parents: list[int], step: int, drop: Any = ()) -> None:
    rows = {
        "start": [step] * len(uids),
        "stop": [step + 1] * len(uids),
        "seeds": [5 + uid for uid in uids],
    }
    board.move({"uids": uids, "parents": parents, **rows, "drop": [*drop]})


def scored(
    board: Board, uid: int, step: int, score: float, nfe: int, right: bool | None = None
) -> None:
    board.spent = Cost(nfe=nfe)
    board.score(uid, step, [score], right=right)


@pytest.mark.parametrize(
    "name", ["best-of-n", "seed-pruning", "ttsnap", "code", "svdd", "best-first", "depth-first"]
)
def test_events_and_trace_tell_the_same(name: str) -> None:
    events, result = searched(name)
    live = Board(GRID.levels)
    for event in events:
        live.listen(event)
    p = result.particles
    assert live.over
    assert live.best is not None
    assert live.best.uid == result.best.uid
    assert live.best.value == result.best.reward
    assert (live.spent.decodes, live.spent.reward_calls) == (
        result.spent.cost.decodes,
        result.spent.cost.reward_calls,
    )
    assert {u: lane.parent for u, lane in live.lanes.items()} == dict(enumerate(p.parent.tolist()))
    assert {u: lane.seed for u, lane in live.lanes.items()} == dict(enumerate(p.seed.tolist()))
    assert {u for u, lane in live.lanes.items() if lane.state == "finished"} == set(
        np.flatnonzero(p.finished).tolist()
    )
    told = Board(GRID.levels)
    for move in result.trace:
        told.move(move)
        for uid, scores in move["scores"].items():
            told.score(uid, dict(zip(move["uids"], move["stop"], strict=True))[uid], scores)
    told.end()
    assert {u: lane.scores for u, lane in told.lanes.items()} == {
        u: lane.scores for u, lane in live.lanes.items()
    }


def test_ties_go_to_the_first_and_failures_never_win() -> None:
    board = begun(levels=(1.0, 0.0))
    board.score(2, 1, [math.nan])
    assert board.best is None
    board.score(1, 1, [0.5])
    board.score(0, 1, [0.5])
    board.score(2, 1, [0.5])
    assert board.best is board.lanes[0]
    board.score(99, 1, [1.0])  # unknown: ignored
    assert 99 not in board.lanes


@pytest.mark.parametrize(
    "name", ["best-of-n", "seed-pruning", "svdd", "code", "best-first", "zero-order"]
)
def test_every_moment_is_drawn_with_all_that_it_came_of_and_families_stay(name: str) -> None:
    twice = {"keep": (0.5, 0.5), "levels": (0.9, 0.7)} if name == "seed-pruning" else {}
    events, result = searched(name, "400nfe", **twice)
    board, before = Board(GRID.levels, picture="data:,"), list[int]()
    for event in events:
        board.listen(event, thumbnail_uri(np.zeros((3, 8, 8))) if event.kind == "score" else "")
        if event.kind == "start" or (event.kind == "score" and event.uids[0] % 32):
            continue
        assert board.over == (event.kind == "end")
        shown, columns = board.placed()
        assert all(origin is None or origin in shown for origin in shown.values())
        assert (
            len({(column, look.step) for look, column in columns.items()})
            == len(shown)
            == len(columns)
        )
        assert not shown or max(columns.values()) < COLUMNS
        html = render_stage("p", [View(name, board, Budget(nfe=400), 10.0)])
        Well(html)
        if board.over:
            continue
        now = list(board.seeds)
        for old, new in zip(before, now, strict=False):
            assert old == new or old not in now, "who is shown stays where the visitor's pointer is"
        roots = [
            look.uid for look in sorted(shown, key=lambda look: columns[look]) if look.step < 0
        ]
        assert roots == [uid for uid in now if uid in roots]
        before = now
    best, uid = result.best, result.best.uid
    assert CandidateAtStep(uid, len(GRID.levels) - 1) in shown
    # the winner's is the first
    assert board.lanes[min(columns, key=lambda look: columns[look]).uid].seed == best.seed
    # branches share seeds
    own = f"{best.seed}" if result.particles.parent[uid] < 0 else f"{best.seed} ↳{uid}"
    assert f"seed {own}, step 10" in html
    assert f"best: seed {own}, reward" in html
    assert html.count("tt-winner") == 1
    if name == "seed-pruning":
        finished = set(np.flatnonzero(result.particles.finished).tolist())
        assert html.count("tt-pruned") == len({look.uid for look in shown} - finished) > 0


def test_the_best_are_shown_the_most_promising_among_them() -> None:
    board = begun(2 * COLUMNS)
    board.wishes = []
    for uid in range(2 * COLUMNS):
        board.score(uid, 1, [uid / 100], "data:,")
        assert board.hope is board.lanes[uid]
        assert f'data-uid="{uid}"' in render_board(board)
    best = set(range(COLUMNS, 2 * COLUMNS))
    assert {look.uid for look in board.placed()[0]} == best
    board.drop([2 * COLUMNS - 1])
    assert board.hope is board.lanes[2 * COLUMNS - 2]


def test_text_is_escaped_everywhere() -> None:
    bad = '<script>alert(1)</script><img src=x onerror="y">&\''
    view = View(bad, Board((1.0, 0.0)), Budget(nfe=5), 10.0, note=bad)
    html = render_stage(bad, [view, view], bad)
    Well(html)
    assert not re.search("<(script|img)", html)
    assert html.count(escape(bad)) >= 6  # prompt, status, and names and notes of both


def test_a_page_makes_room_for_the_shape_of_images() -> None:
    wide = EngineSpec(ModelOptions(), ("reward",), call={"width": 24, "height": 16})
    assert aspect_of(SearchRequest((Prompt("p"),), wide, "best-of-n", Budget(nfe=8))) == 1.5


def test_the_pure_parts_need_neither_gradio_nor_torch() -> None:
    names = [
        "board",
        "board_html",
        "panels",
        "chart",
        "form",
        "html",
        "snippet",
        "worker",
        "live",
        "stream",
    ]
    code = f"import sys\nfor n in {names!r}: __import__('ttsnap.demo.' + n)\n"
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'gradio', 'diffusers')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_best_so_far_is_a_step_line_of_estimates_and_then_of_finished_images() -> None:
    board = begun()
    for uid, nfe, score in ((0, 10, 0.3), (1, 20, 0.9), (2, 20, 0.5)):
        scored(board, uid, 1, score, nfe)
    moved(board, [1, 2], [1, 2], 1, drop=[0])
    scored(board, 1, 2, 0.8, 30, right=True)
    scored(board, 2, 2, 0.4, 40, right=False)
    board.end()
    assert [(m.nfe, m.score, m.finished) for m in board.curve] == [
        (10, 0.3, False),
        (20, 0.9, False),
        (30, 0.8, True),
        (40, 0.8, True),
        (40, 0.8, True),
    ]
    html = render_chart([("Seed pruning", board)], 40)
    Well(html)
    assert LEGEND_RIGHT in html
    kinds = ("hope", "step", "faint", "full", "hollow", "end")
    assert [html.count(f'class="tt-{name} ') for name in kinds] == [1] * 6
    assert [f">{x}</span>" in html for x in (0, 10, 20, 30, 40)] == [True] * 5
    stage = render_stage("p", [View("Seed pruning", board, Budget(nfe=40), 10.0)])
    assert "seed 6, step 2: .800, strictly right" in stage
    assert "seed 7, step 2: .400, wrong" in stage


def test_two_searches_are_drawn_on_one_scale_within_the_plot() -> None:
    boards = [begun(1, (1.0, 0.0)), begun(1, (1.0, 0.0))]
    for board, nfe, score in zip(boards, (120, 114), (0.7, 0.9), strict=True):
        scored(board, 0, 1, score, nfe, right=score > 0.8)
        board.end()
    html = render_chart([("Best-of-N", boards[0]), ("Seed pruning", boards[1])], 120)
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
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    values = ticks(low, high, 6 if high == 120 else 4)
    assert values[0] <= low
    assert values[-1] >= high
    assert values[: len(found)] == pytest.approx(found)


def test_open_candidates_have_buttons_that_say_at_once_what_was_asked() -> None:
    board = begun()
    assert "<button" not in render_board(board)  # a comparison takes no wishes
    board.wishes = [UserCommand("finish", 1), UserCommand("drop", 1)]
    board.score(2, 1, [0.5])
    board.drop([2])
    html = render_board(board)
    Well(html)
    asked = [*zip(("finish", "drop") * 2, "0011", strict=True)]
    assert re.findall(r'data-verb="(\w+)" data-uid="(\d+)"', html) == asked
    assert re.findall(r'data-asked="(\w+)"', html) == ["drop"]
    board.end()
    assert "<button" not in render_board(board)


def asked_for(algorithm: str, nfe: int) -> Prepared:
    spec = EngineSpec(ModelOptions(), ("reward",), SamplerOptions(kernel_for(algorithm)))
    return prepare(SearchRequest((Prompt("p"),), spec, algorithm, Budget(nfe=nfe)), ModelDefaults())


def test_what_is_left_of_a_budget_is_explained() -> None:
    _, result = searched("svdd", "90nfe")
    text = why_unspent(asked_for("svdd", 90), GRID, result.spent)
    sizes = [int(n) for n in re.findall(r"n = (\d+)", text)]
    assert text.startswith(f"SVDD ended after {result.spent.nfe} of 90 evaluations")
    assert sizes[1] == sizes[0] + 1
    assert int(text.rstrip(".").split()[-1]) > 90
    assert (
        why_unspent(asked_for("best-of-n", 100), GRID, replace(result.spent, cost=Cost(100))) == ""
    )
    few = replace(result.spent, cost=Cost(40))
    assert "runs with n = 4" in why_unspent(asked_for("fk-steering", 100), GRID, few)
    for cap in ("3s", "10decodes"):  # another cap held, about which the search itself says enough
        held = replace(few, cost=Cost(nfe=40, decodes=10), seconds=3.0)
        capped = replace(Budget.parse(cap), nfe=100)
        assert why_unspent(replace(asked_for("fk-steering", 100), budget=capped), GRID, held) == ""


def test_drafts_are_called_so() -> None:
    live, events = made(), list[Event]()
    search(["a"], SeedPruning(12, keep=(0.5,), steps=(3,)), live, on_event=events.append)
    board = Board(live.grid.levels)
    for event in events:
        board.listen(event, "data:,")
    html = render_board(board)
    assert ">draft<small>noise 1.00" in html
    assert ">step 3<small>" in html
    assert ">step 0<" not in html
