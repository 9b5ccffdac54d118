"""The board as HTML: candidates (columns) over scored steps (rows), with threads from parents to children."""

from __future__ import annotations

import math
from collections import Counter
from html import escape

from ttsnap.demo.board import Board, Lane
from ttsnap.demo.html import VERDICTS, picture, short, verdict

PICTURE_SHARE = 0.42
"""Where the middle of a picture is in its row: the score stands below."""


def render_board(board: Board, title: str = "", winner: int | None = None) -> str:
    """The board, `winner` framed (the best finished one by default). All text in it is escaped."""
    lanes, rows = board.shown(), board.rows
    if not lanes or not rows:
        idle = '<div class="tt-idle">waiting for the first scores</div>'
        return f'<div class="tt-board">{_head(board, title, 0)}{idle}</div>'
    best = board.best
    crowned = winner if winner is not None else best.uid if best is not None else -1
    place = {lane.uid: column for column, lane in enumerate(lanes)}
    low, high = _range(board)
    forks = board.forks()
    labels = '<div class="tt-row tt-corner" style="grid-row:1"><small>seed</small></div>'
    labels += "".join(_row_label(board, step, line) for line, step in enumerate(rows))
    heads = "".join(_column_label(lane, column, place, crowned) for column, lane in enumerate(lanes))
    cells = "".join(
        _cell(lane, step, f"{line + 2}/{column + 2}", (low, high), board, crowned, step > forks.get(lane.uid, -1))
        for column, lane in enumerate(lanes)
        for line, step in enumerate(rows)
    )
    threads = _threads(board, lanes, rows, place, crowned)
    style = f"--n:{len(lanes)};--r:{len(rows)}"
    grid = f'<div class="tt-grid" style="{style}">{threads}{labels}{heads}{cells}</div>'
    head = _head(board, title, len(lanes))
    return f'<div class="tt-board">{head}<div class="tt-scroll" tabindex="0">{grid}</div></div>'


def _head(board: Board, title: str, shown: int) -> str:
    forks = board.forks()
    state = Counter(lane.state for lane in board.lanes.values() if lane.uid not in forks or lane.state != "dropped")
    words = [f"{len(board.lanes)} candidates", f"{state['dropped']} pruned", f"{state['finished']} finished"]
    words += [f"{state['going']} under way"] if state["going"] else []
    words += [f"{shown} of them are shown"] if 0 < shown < len(board.lanes) else []
    words += (
        ["↳ marks a branch: same seed, other steps"] if any(lane.parent >= 0 for lane in board.lanes.values()) else []
    )
    name = f"<b>{escape(title)}</b>" if title else ""
    return f'<div class="tt-boardhead">{name}<span>{" · ".join(words)}</span></div>'


def _range(board: Board) -> tuple[float, float]:
    values = [v for lane in board.lanes.values() for v in lane.scores.values() if math.isfinite(v)]
    return (min(values), max(values)) if values else (0.0, 1.0)


def _row_label(board: Board, step: int, line: int) -> str:
    drafted = board.looks.get(step) == {"draft"}
    name = "finished" if step == board.steps else "draft" if drafted else f"step {step}"
    noise = "" if step == board.steps else f"<small>noise {board.levels[step]:.2f}</small>"
    return f'<div class="tt-row" style="grid-row:{line + 2}">{name}{noise}</div>'


def _column_label(lane: Lane, column: int, place: dict[int, int], crowned: int) -> str:
    born = "" if lane.parent < 0 else f", branched off {lane.parent} at step {lane.born}"
    about = f"candidate {lane.uid}, seed {lane.seed}{born}"
    kind = " tt-crown" if lane.uid == crowned else " tt-off" if lane.state == "dropped" else ""
    return f'<div class="tt-col{kind}" style="grid-column:{column + 2}" title="{about}">{lane.name}</div>'


def _cell(
    lane: Lane, step: int, area: str, bounds: tuple[float, float], board: Board, crowned: int, childless: bool
) -> str:
    where = f"grid-area:{area}"
    if step not in lane.scores:
        if lane.state == "going" and lane.aim == step:
            return f'<div class="tt-cell tt-pending" style="{where}"><i></i><span>&nbsp;</span></div>'
        return ""
    score = lane.scores[step]
    kinds = ["tt-cell"]
    kinds += ["tt-pruned"] if lane.state == "dropped" and step == lane.reached and childless else []
    kinds += ["tt-winner"] if lane.uid == crowned and step == board.steps else []
    share = 0.0 if math.isnan(score) or bounds[1] == bounds[0] else (score - bounds[0]) / (bounds[1] - bounds[0])
    text = "failed" if math.isnan(score) else short(score)
    fate = " · pruned here" if "tt-pruned" in kinds else ""
    right = verdict(lane.right) if step == board.steps else ""
    about = f"seed {lane.name}, step {step}: {text}{right and VERDICTS[bool(lane.right)]}{fate}"
    uri = lane.pictures.get(step)
    if uri is not None:
        inner = picture(uri, about)
    else:
        kinds += ["tt-failed"] if math.isnan(score) else []
        inner = f'<i style="--v:{share * 100:.0f}%"></i>'
    return f'<div class="{" ".join(kinds)}" style="{where}" title="{about}">{inner}<span>{text}{right}</span></div>'


def _ways(board: Board, crowned: int) -> dict[int, int]:
    """The winner and its ancestors, and up to which step each was on the winner's way."""
    line = board.lineage(crowned)
    ends = [board.steps] + [board.lanes[uid].born for uid in line[:-1]]
    return dict(zip(line, ends, strict=False))


def _threads(board: Board, lanes: list[Lane], rows: list[int], place: dict[int, int], crowned: int) -> str:
    """Lines down each candidate that went on, and from parents to children; those of the winner stand out."""
    line_of = {step: line for line, step in enumerate(rows)}
    golden = _ways(board, crowned)
    plain: list[str] = []
    gold: list[str] = []
    for lane in lanes:
        x = place[lane.uid] + 0.5
        steps = sorted(lane.scores) + ([lane.aim] if lane.state == "going" else [])
        ys = [line_of[step] + PICTURE_SHARE for step in steps]
        won = [y for y, step in zip(ys, steps, strict=True) if step <= golden.get(lane.uid, -1)]
        gold += [f"M{x} {won[0]:g}V{won[-1]:g}"] if len(won) > 1 else []
        rest = ys[max(0, len(won) - 1) :]
        plain += [f"M{x} {rest[0]:g}V{rest[-1]:g}"] if len(rest) > 1 else []
        parent = board.lanes.get(lane.parent)
        if parent is not None and lane.parent in place and ys:
            above = [step for step in parent.scores if step <= lane.born] or list(parent.scores)
            if above:
                x0, y0, y1 = place[lane.parent] + 0.5, line_of[max(above)] + PICTURE_SHARE, ys[0]
                middle = (y0 + y1) / 2 if y1 > y0 else min(y0, y1) - 0.55
                path = f"M{x0} {y0:g}C{x0} {middle:g} {x} {middle:g} {x} {y1:g}"
                (gold if lane.uid in golden else plain).append(path)
    lines = f'<path d="{"".join(plain)}"/><path class="tt-gold" d="{"".join(gold)}"/>'
    return f'<svg class="tt-threads" viewBox="0 0 {len(lanes)} {len(rows)}" preserveAspectRatio="none">{lines}</svg>'
