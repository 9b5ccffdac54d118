"""Traces that strangers upload: malformed ones are refused with a message, in little time."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ttsnap.demo.board_html import render_board
from ttsnap.demo.folder import read_folder
from ttsnap.demo.traces import Trace, board_at

MOVE = {"uids": [0, 1], "parents": [-1, -1], "start": [0, 0], "stop": [1, 1], "seeds": [3, 4], "drop": [],
        "scores": {"0": [0.5], "1": [0.25]}, "cost": {"nfe": 4, "decodes": 2, "reward_calls": 2}}  # fmt: skip
ON = {"uids": [0, 2], "parents": [0, 0], "start": [1, 1], "stop": [2, 2], "seeds": [3, 9], "drop": [1],
      "scores": {"0": [0.6], "2": [0.7]}, "cost": {"nfe": 2, "decodes": 2, "reward_calls": 2}}  # fmt: skip
GOOD = {"settings": {}, "levels": [1.0, 0.5, 0.0],
        "results": [{"prompt": "p", "images": [{"uid": 2}], "moves": [MOVE, ON]}]}  # fmt: skip


def read_trace(path: Path, most: int) -> Trace:
    trace = read_folder([(path.name, path)], most).trace
    assert trace is not None
    return trace


def at(*keys: Any, value: Any) -> Callable[[Any], None]:
    """Sets the value at that path of a trace."""

    def change(trace: Any) -> None:
        for key in keys[:-1]:
            trace = trace[key]
        trace[keys[-1]] = value

    return change


FIRST = ("results", 0, "moves", 0)
BAD: list[Callable[[Any], None]] = [
    at("results", value={}),
    at("results", value=[]),
    at("results", value=[5]),
    at("results", value=[{"prompt": 5, "moves": []}]),
    at("results", value=[{"prompt": "p", "moves": [MOVE]}] * 201),
    at("levels", value=None),
    at("levels", value=[float("nan"), 0.0]),
    at("levels", value=[0.0, 0.5, 1.0]),
    at("levels", value=["1", "0"]),
    at("levels", value=[1 - i / 2000 for i in range(2001)]),
    at("results", 0, "moves", value="abc"),
    at("results", 0, "moves", value=[{}] * 5001),
    at("results", 0, "moves", value=[[]]),
    at(*FIRST, "uids", value=[0]),
    at(*FIRST, "uids", value=[0, -1]),
    at(*FIRST, "uids", value=[0, 10**9]),
    at(*FIRST, "uids", value=[0, True]),
    at(*FIRST, "uids", value=[0, 1.5]),
    at(*FIRST, "uids", value={"0": 1}),
    at(*FIRST, "parents", value=[-1, 1]),  # its own parent
    at(*FIRST, "parents", value=[1, 0]),  # a cycle
    at(*FIRST, "parents", value=[-1, 77]),
    at(*FIRST, "start", value=[0, 2]),
    at(*FIRST, "start", value=[-1, 0]),
    at(*FIRST, "stop", value=[1, 3]),
    at(*FIRST, "seeds", value=[3, 2**64]),
    at(*FIRST, "drop", value=[-1]),
    at(*FIRST, "drop", value="0"),
    at(*FIRST, "scores", value=None),
    at(*FIRST, "scores", value={"7": [0.5]}),
    at(*FIRST, "scores", value={"<b>": [0.5]}),
    at(*FIRST, "scores", value={"0": ["0.5"]}),
    at(*FIRST, "scores", value={"0": 0.5}),
    at(*FIRST, "scores", value={"0": [0.5] * 17}),
    at(*FIRST, "cost", value={"nfe": -5}),
    at(*FIRST, "cost", value={"nfe": "4"}),
    at(*FIRST, "cost", value=[4]),
    at("results", 0, "moves", 1, "parents", value=[1, 0]),  # goes on from another particle
]


def written(folder: Path, content: Any) -> Path:
    path = folder / "trace.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize("change", BAD)
def test_malformed_traces_are_refused(change: Callable[[Any], None], tmp_path: Path) -> None:
    trace = copy.deepcopy(GOOD)
    change(trace)
    with pytest.raises(ValueError, match=r"\w{3}") as caught:
        read_trace(written(tmp_path, trace), 10**7)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"\xff\xfe\0", b"[" * 100_000, b"5", b"null", b"{}", b'{"results": ' + b"9" * 5000 + b"}",
     b"[]" * 10, b"PK\x03\x04"],
)  # fmt: skip
def test_files_that_are_no_trace_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\w{3}"):
        read_trace(written(tmp_path, content), 10**7)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 1,000"):
        read_trace(written(tmp_path, b" " * 1001), 1000)


def test_scores_that_failed_and_odd_prompts_are_shown(tmp_path: Path) -> None:
    trace: Any = copy.deepcopy(GOOD)
    trace["results"][0]["prompt"] = "<script>\0\u202e"
    at(*FIRST, "scores", value={"0": [float("nan")], "1": [None]})(trace)
    at("results", 0, "moves", 1, "scores", value={"0": [float("inf")], "2": [0.7]})(trace)
    found = read_trace(written(tmp_path, trace), 10**7)
    board = board_at(found, found.results[0], 2)
    assert board.best is board.lanes[2]
    html = render_board(board, winner=2)
    assert html.count("failed") >= 3


def test_the_largest_traces_draw_quickly(tmp_path: Path) -> None:
    """A chain of 5000 generations, and 20,000 siblings."""
    chain = [{**MOVE, "uids": [0], "parents": [-1], "start": [0], "stop": [2], "seeds": [0], "scores": {"0": [0.5]}}]
    for uid in range(1, 5000):
        chain.append({**MOVE, "uids": [uid], "parents": [uid - 1], "start": [0], "stop": [2], "seeds": [0],
                      "scores": {str(uid): [uid / 5000]}})  # fmt: skip
    many = list(range(20_000))
    wide = [{**MOVE, "uids": many, "parents": [-1] * len(many), "start": [0] * len(many), "stop": [2] * len(many),
             "seeds": many, "scores": {str(uid): [0.5] for uid in many}}]  # fmt: skip
    for moves in (chain, wide):
        path = written(tmp_path, {**GOOD, "results": [{"prompt": "p", "moves": moves}]})
        begin = time.perf_counter()
        trace = read_trace(path, 10**8)
        board = board_at(trace, trace.results[0], len(moves))
        html = render_board(board)
        assert time.perf_counter() - begin < 10
        assert len(html) < 500_000
        assert board.best is not None
