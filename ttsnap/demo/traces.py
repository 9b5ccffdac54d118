"""Traces from strangers: checked, and drawn as boards move by move. No model runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttsnap.core.cost import NAMES, Cost
from ttsnap.core.grid import Grid
from ttsnap.demo.board import Board
from ttsnap.files import reading as files
from ttsnap.files.settings import check, short

MOST_RESULTS, MOST_MOVES, MOST_PARTICLES, MOST_STEPS, MOST_REWARDS = 200, 5000, 20_000, 1000, 16
MOST_IMAGES, MOST_COST = 64, 10**12


@dataclass(frozen=True)
class TracedSearch:
    """One prompt's search, as its trace has it."""

    prompt: str
    moves: tuple[Mapping[str, Any], ...]
    images: Mapping[int, str]
    """File names of the images that were returned, by uid, best first."""

    @property
    def winner(self) -> int | None:
        """The uid that won; None where the trace does not say."""
        return next(iter(self.images), None)


@dataclass(frozen=True)
class Trace:
    """A trace.json: noise levels of steps 0..K, and a search for each prompt."""

    levels: tuple[float, ...]
    results: tuple[TracedSearch, ...]


def parse_trace(text: bytes) -> Trace:
    """A trace.json as `ttsnap generate` writes it. ValueError says what is wrong with it."""
    data = files.parse_json(text, "the trace", nan=True)
    if not isinstance(data, dict) or not isinstance(results := data.get("results"), list):
        raise ValueError('this is not a trace.json: it has no list of "results"; upload one that ttsnap wrote')
    given = _list(data.get("levels"), "the trace's levels", MOST_STEPS + 1)
    levels = Grid(check("the trace's levels", given, tuple[float, ...])).levels
    if not 1 <= len(results) <= MOST_RESULTS:
        raise ValueError(f"the trace must hold 1 to {MOST_RESULTS} results, it holds {len(results)}")
    return Trace(levels, tuple(_result(result, len(levels) - 1, f"result {i}") for i, result in enumerate(results)))


def board_at(trace: Trace, search: TracedSearch, moves: int) -> Board:
    """The board after the first `moves` moves; after the last one, at its end."""
    board = Board(trace.levels)
    for move in search.moves[:moves]:
        board.move(move)
        board.spent += move["cost"] - move["refund"]
        stops = dict(zip(move["uids"], move["stop"], strict=True))
        for uid, scores in move["scores"].items():
            board.score(uid, stops[uid], scores)
        for uid in stops:
            lane = board.lanes[uid]
            lane.state = "waiting" if lane.state == "going" else lane.state
    if moves >= len(search.moves):
        board.end()
    return board


def _result(data: Any, steps: int, where: str) -> TracedSearch:
    if not isinstance(data, dict) or not isinstance(data.get("prompt"), str):
        raise ValueError(f"{where} of the trace must be an object with a prompt and moves")
    known: set[int] = set()
    moves = enumerate(_list(data.get("moves"), f"{where}: moves", MOST_MOVES))
    checked = tuple(_move(_object(move, f"{where}, move {i}"), steps, known, f"{where}, move {i}") for i, move in moves)
    images: dict[int, str] = {}
    listed = data.get("images")
    for image in listed[:MOST_IMAGES] if isinstance(listed, list) else ():  # file names are only compared
        uid, name = (image.get("uid"), image.get("file")) if isinstance(image, dict) else (None, None)
        if isinstance(uid, int) and uid in known:
            images.setdefault(uid, name if isinstance(name, str) else "")
    return TracedSearch(data["prompt"][:2000], checked, images)


def _move(data: Mapping[str, Any], steps: int, known: set[int], where: str) -> dict[str, Any]:
    """A checked move; `known` gains its new particles. Parents exist before their children, so there are no circles."""
    most = {"uids": MOST_PARTICLES, "parents": MOST_PARTICLES, "start": steps + 1, "stop": steps + 1, "seeds": 2**64}
    columns = {
        name: _whole_numbers(data.get(name), f"{where}: {name}", -1 if name == "parents" else 0, high)
        for name, high in most.items()
    }
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"{where}: uids, parents, start, stop and seeds must be of one length")
    for uid, parent, start, stop, _ in zip(*columns.values(), strict=True):
        if start > stop:
            raise ValueError(f"{where}: particle {uid} goes from step {start} back to {stop}")
        if parent >= 0 and parent not in known:
            raise ValueError(f"{where}: particle {uid} names parent {parent}, which was not there before")
        if uid in known and parent != uid:
            raise ValueError(f"{where}: particle {uid} exists, but the row goes on from {parent}")
    known |= set(columns["uids"])
    look = str(data.get("look"))
    return {
        **columns,
        "drop": _whole_numbers(data.get("drop", []), f"{where}: drop", 0, MOST_PARTICLES),
        **{name: _cost(data.get(name, {}), f"{where}: {name}") for name in ("cost", "refund")},
        **({"look": look} if re.fullmatch(r"draft:\d{1,2}", look) else {}),
        "scores": _scores(data.get("scores"), set(columns["uids"]), f"{where}: scores"),
    }


def _scores(data: Any, uids: set[int], where: str) -> dict[int, Sequence[float]]:
    scores: dict[int, Sequence[float]] = {}
    for key, values in _object(data, where).items():
        if not key.isdecimal() or len(key) > 9 or int(key) not in uids:
            raise ValueError(f"{where} name particle {key[:40]!r}, which is not in the move")
        if set(map(type, _list(values, f"{where} of {key}", MOST_REWARDS))) - {int, float, type(None)}:
            raise ValueError(f"{where} of {key} must be numbers")
        scores[int(key)] = [float(v) if v is not None and abs(v) < 1e300 else math.nan for v in values]
    return scores


def _cost(data: Any, where: str) -> Cost:
    counts = [_object(data, where).get(name, 0) for name in NAMES]
    return Cost(**dict(zip(NAMES, _whole_numbers(counts, where, 0, MOST_COST), strict=True)))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} of the trace must be an object, got {short(value)}")
    return value


def _list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        kind = f"{type(value).__name__} of {len(value):,}" if isinstance(value, list) else type(value).__name__
        raise ValueError(f"{where} of the trace must be a list of at most {most:,}, got {kind}")
    return value


def _whole_numbers(value: Any, where: str, low: int, high: int) -> list[int]:
    """A list of whole numbers from `low` to below `high`; `check` would take minutes for as many as a file can hold."""
    numbers = _list(value, where, MOST_PARTICLES)
    if numbers and (set(map(type, numbers)) != {int} or min(numbers) < low or max(numbers) >= high):
        wrong = next(each for each in numbers if type(each) is not int or not low <= each < high)
        raise ValueError(f"{where} must be whole numbers from {low} to {high - 1}, got {str(wrong)[:40]}")
    return numbers
