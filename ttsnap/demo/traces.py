"""Traces that strangers upload: read with suspicion, and turned into boards move by move. No model runs."""

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

MOST_RESULTS, MOST_MOVES, MOST_PARTICLES, MOST_STEPS, MOST_REWARDS = 200, 5000, 20_000, 1000, 16
MOST_IMAGES = 64


@dataclass(frozen=True)
class Told:
    """One prompt's search as its trace tells it: the moves, and the uids of the images that it returned with the names
    of their files, best first."""

    prompt: str
    moves: tuple[Mapping[str, Any], ...]
    images: Mapping[int, str]

    @property
    def winner(self) -> int | None:
        """The uid that won; None where the trace does not say."""
        return next(iter(self.images), None)


@dataclass(frozen=True)
class Trace:
    """A whole trace file."""

    levels: tuple[float, ...]
    settings: Mapping[str, Any]
    results: tuple[Told, ...]


def parse_trace(text: bytes) -> Trace:
    """The content of a trace.json as `ttsnap generate` writes it. ValueError that says what is wrong with it."""
    data = files.parse_json(text, "the trace", nan=True)
    if not isinstance(data, dict) or not isinstance(data.get("results"), list):
        raise ValueError('this is not a trace.json: it has no list of "results"; upload one that ttsnap wrote')
    levels = _levels(data.get("levels"))
    results, settings = data["results"], data.get("settings")
    if not 1 <= len(results) <= MOST_RESULTS:
        raise ValueError(f"the trace must hold 1 to {MOST_RESULTS} results, it holds {len(results)}")
    told = tuple(_result(result, len(levels) - 1, f"result {i}") for i, result in enumerate(results))
    return Trace(levels, settings if isinstance(settings, dict) else {}, told)


def board_at(trace: Trace, told: Told, moves: int) -> Board:
    """The board after the first `moves` moves, and the end after the last."""
    board = Board(trace.levels)
    for move in told.moves[:moves]:
        board.move(move)
        cost, refund = (move.get(name, {}) for name in ("cost", "refund"))
        counts = {name: cost.get(name, 0) - refund.get(name, 0) for name in NAMES}
        board.spent += Cost(**counts)
        stops = dict(zip(move["uids"], move["stop"], strict=True))
        for uid, scores in move["scores"].items():
            board.score(uid, stops[uid], scores)
        for uid in stops:
            lane = board.lanes[uid]
            lane.state = "waiting" if lane.state == "going" else lane.state
    if moves >= len(told.moves):
        board.end()
    return board


def _levels(values: Any) -> tuple[float, ...]:
    numbers = _list(values, "levels", MOST_STEPS + 1)
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in numbers):
        raise ValueError("the trace's levels must be finite numbers")
    return Grid(tuple(float(v) for v in numbers)).levels


def _list(value: Any, name: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{name} of the trace must be a list of at most {most:,}, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {len(value):,}" if isinstance(value, list) else type(value).__name__


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise ValueError(f"{name} must be a whole number from {low} to {high - 1}, got {str(value)[:40]}")
    return value


def _result(data: Any, steps: int, where: str) -> Told:
    if not isinstance(data, dict) or not isinstance(data.get("prompt"), str):
        raise ValueError(f"{where} of the trace must be an object with a prompt and moves")
    known: set[int] = set()
    moves = _list(data.get("moves"), f"{where}: moves", MOST_MOVES)
    told = tuple(_move(move, steps, known, f"{where}, move {i}") for i, move in enumerate(moves))
    return Told(data["prompt"][:2000], told, _images(data.get("images"), known))


def _images(data: Any, known: set[int]) -> dict[int, str]:
    """File names (for comparison only) by uid; entries that are not as ttsnap writes them are left out."""
    names: dict[int, str] = {}
    for image in data[:MOST_IMAGES] if isinstance(data, list) else ():
        uid, name = (image.get("uid"), image.get("file")) if isinstance(image, dict) else (None, None)
        if isinstance(uid, int) and uid in known:
            names.setdefault(uid, name if isinstance(name, str) else "")
    return names


def _move(data: Any, steps: int, known: set[int], where: str) -> dict[str, Any]:
    """The move, checked; `known` gains its new particles. A parent exists before its children, so none is cyclic."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object")
    columns = {
        k: _list(data.get(k), f"{where}: {k}", MOST_PARTICLES) for k in ("uids", "parents", "start", "stop", "seeds")
    }
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"{where}: uids, parents, start, stop and seeds must be of one length")
    for uid, parent, start, stop, seed in zip(*columns.values(), strict=True):
        _whole(uid, f"{where}: uid", 0, MOST_PARTICLES)
        _whole(parent, f"{where}: parent", -1, MOST_PARTICLES)
        _whole(start, f"{where}: start", 0, steps + 1)
        _whole(stop, f"{where}: stop", start, steps + 1)
        _whole(seed, f"{where}: seed", 0, 2**64)
        if parent >= 0 and parent not in known:
            raise ValueError(f"{where}: particle {uid} names parent {parent}, which was not there before")
        if uid in known and parent != uid:
            raise ValueError(f"{where}: particle {uid} exists, but the row goes on from {parent}")
    known |= set(columns["uids"])
    drop = [
        _whole(uid, f"{where}: drop", 0, MOST_PARTICLES) for uid in _list(data.get("drop", []), "drop", MOST_PARTICLES)
    ]
    counts = {k: _counts(data.get(k, {}), f"{where}: {k}") for k in ("cost", "refund")}
    scores = _scores(data.get("scores"), set(columns["uids"]), where)
    look = str(data.get("look"))
    drafted = {"look": look} if re.fullmatch(r"draft:\d{1,2}", look) else {}
    return {**columns, "drop": drop, **counts, **drafted, "scores": scores}


def _scores(data: Any, uids: set[int], where: str) -> dict[int, Sequence[float]]:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: scores must be an object")
    scores: dict[int, Sequence[float]] = {}
    for key, values in data.items():
        if not key.isdecimal() or len(key) > 9 or int(key) not in uids:
            raise ValueError(f"{where}: scores name particle {key[:40]!r}, which is not in the move")
        numbers = _list(values, f"{where}: scores of {key}", MOST_REWARDS)
        if any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in numbers):
            raise ValueError(f"{where}: scores of {key} must be numbers")
        scores[int(key)] = [float(v) if v is not None and abs(v) < 1e300 else math.nan for v in numbers]
    return scores


def _counts(data: Any, where: str) -> dict[str, int]:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object")
    return {name: _whole(data.get(name, 0), f"{where}: {name}", 0, 10**12) for name in NAMES}
