"""The board as HTML: looks at candidates over the steps at which they were scored, with lines of
descent."""

from __future__ import annotations

import math
from collections import Counter
from html import escape

from ttsnap.algorithms.by_hand import DROP, FINISH
from ttsnap.demo.board import COLUMNS, Board
from ttsnap.demo.html import VERDICTS, line, picture, short, verdict
from ttsnap.results.lineage import CandidateAtStep, chain

PICTURE_SHARE = 0.42
"""The middle of a picture, as a share of its row's height: the score stands below."""


def render_board(board: Board, title: str = "") -> str:
    """The board. All text is escaped."""
    table = Table(board)
    if not table.rows:
        return (
            "<div"
            f' class="tt-board">{_head(board, title, 0)}{line("idle", "waiting for the first scores")}</div>'
        )
    labels = '<div class="tt-row tt-corner" style="grid-row:1"><small>seed</small></div>'
    labels += "".join(map(table.row_label, table.rows))
    cells = "".join(table.seed(look) if look.step < 0 else table.cell(look) for look in table.shown)
    columns = max(table.columns.values()) + 1
    room = max(columns, 0 if board.over else COLUMNS)  # columns that are to come change no width
    style = f"--n:{columns};--room:{room};--r:{len(table.rows)}"
    led = "" if board.wishes is None or board.over else " tt-led"
    grid = f'<div class="tt-grid{led}" style="{style}">{table.lines(columns)}{labels}{cells}</div>'
    head = _head(board, title, len({look.uid for look in table.shown if look.step >= 0}))
    return f'<div class="tt-board">{head}<div class="tt-scroll" tabindex="0">{grid}</div></div>'


def _head(board: Board, title: str, shown: int) -> str:
    lanes = board.lanes.values()
    parents = {lane.parent for lane in lanes}
    state = Counter(
        lane.state for lane in lanes if lane.uid not in parents or lane.state != "dropped"
    )
    words = [
        f"{len(lanes)} candidates",
        f"{state['dropped']} pruned",
        f"{state['finished']} finished",
    ]
    words += [f"{state['going']} under way"] if state["going"] else []
    words += [f"{shown} of them are shown"] if 0 < shown < len(lanes) else []
    name = f"<b>{escape(title)}</b>" if title else ""
    return f'<div class="tt-boardhead">{name}<span>{" · ".join(words)}</span></div>'


class Table:
    """The grid of a board: its columns, its rows, and their parts as HTML."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.winner = -1 if board.best is None else board.best.uid
        self.shown, self.columns = board.placed()
        self.rows = sorted({look.step for look in self.shown if look.step >= 0})
        self.row = {step: place for place, step in enumerate(self.rows)}
        self.left = {origin for origin in self.shown.values() if origin is not None}
        won = CandidateAtStep(self.winner, board.steps)
        self.golden = set(chain(won, self.shown)) if won in self.shown else set[CandidateAtStep]()
        scores = [
            v for lane in board.lanes.values() for v in lane.scores.values() if math.isfinite(v)
        ]
        self.low, self.high = (min(scores), max(scores)) if scores else (0.0, 1.0)

    def row_label(self, step: int) -> str:
        board = self.board
        drafted = board.looks.get(step) == {"draft"}
        name = "finished" if step == board.steps else "draft" if drafted else f"step {step}"
        noise = "" if step == board.steps else f"<small>noise {board.levels[step]:.2f}</small>"
        return f'<div class="tt-row" style="grid-row:{self.row[step] + 2}">{name}{noise}</div>'

    def seed(self, look: CandidateAtStep) -> str:
        """The name of a family above its first picture."""
        style, kind = (
            f"grid-column:{self.columns[look] + 2}",
            " tt-crown" if look in self.golden else "",
        )
        return f'<div class="tt-col{kind}" style="{style}">{self.board.lanes[look.uid].seed}</div>'

    def cell(self, look: CandidateAtStep) -> str:
        lane, last = self.board.lanes[look.uid], look.step == self.board.steps
        where = f"grid-area:{self.row[look.step] + 2}/{self.columns[look] + 2}"
        hand = self.hand(look)
        if look.step not in lane.scores:
            inner = f"<i></i><span>&nbsp;</span>{hand}"
            return (
                f'<div class="tt-cell tt-pending" style="{where}" title="seed'
                f' {lane.name}">{inner}</div>'
            )
        score, uri = lane.scores[look.step], lane.pictures.get(look.step)
        failed, pruned = math.isnan(score), lane.state == "dropped" and look not in self.left
        kinds = {
            "tt-cell": True,
            "tt-pruned": pruned,
            "tt-winner": last and lane.uid == self.winner,
            "tt-failed": failed and uri is None,
        }
        text = "failed" if failed else short(score)
        right = verdict(lane.right) if last else ""
        about = f"seed {lane.name}, step {look.step}: {text}{right and VERDICTS[bool(lane.right)]}"
        about += " · pruned here" if pruned else ""
        share = (
            0.0 if failed or self.high == self.low else (score - self.low) / (self.high - self.low)
        )
        inner = (
            picture(uri, about) if uri is not None else f'<i style="--v:{share * 100:.0f}%"></i>'
        )
        kind = " ".join(name for name, holds in kinds.items() if holds)
        return (
            f'<div class="{kind}" style="{where}"'
            f' title="{about}">{inner}<span>{text}{right}</span>{hand}</div>'
        )

    def hand(self, look: CandidateAtStep) -> str:
        """Buttons by which the visitor leads a candidate, below the last look at it."""
        board, lane = self.board, self.board.lanes[look.uid]
        reached = lane.aim if lane.state == "going" else lane.reached
        if board.wishes is None or lane.state not in ("going", "waiting") or look.step != reached:
            return ""
        said = next((wish.verb for wish in reversed(board.wishes) if wish.uid == lane.uid), "")
        both = (
            f'<button data-verb="{verb}" data-uid="{lane.uid}">{verb}</button>'
            for verb in (FINISH, DROP)
        )
        return f'<div class="tt-hand" data-asked="{said}">{"".join(both)}</div>'

    def lines(self, columns: int) -> str:
        """Lines from looks to those that came of them; those of the winner stand out."""
        paths: dict[bool, str] = {False: "", True: ""}
        for look, origin in self.shown.items():
            if origin is None:
                continue
            column, below = self.columns[look], self.row[look.step]
            if origin.step < 0 and self.columns[origin] == column and below == 0:
                continue  # a seed's name stands right above
            above = self.row.get(origin.step, -1)
            x0, x1 = self.columns[origin] + 0.5, column + 0.5
            # aside right below the origin
            y0, y1 = max(0.0, above + PICTURE_SHARE), above + 1 + PICTURE_SHARE
            middle = (y0 + y1) / 2
            bend = "" if x0 == x1 else f"C{x0} {middle:g} {x1} {middle:g} {x1} {y1:g}"
            paths[look in self.golden] += f"M{x0} {y0:g}{bend}V{below + PICTURE_SHARE:g}"
        lines = f'<path d="{paths[False]}"/><path class="tt-gold" d="{paths[True]}"/>'
        box = f"0 0 {columns} {len(self.rows)}"
        return f'<svg class="tt-threads" viewBox="{box}" preserveAspectRatio="none">{lines}</svg>'
