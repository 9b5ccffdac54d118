"""The board as HTML: candidates (columns) over scored steps (rows), with lines from parents to children."""

from __future__ import annotations

import math
from collections import Counter
from html import escape

from ttsnap.algorithms.by_hand import DROP, FINISH
from ttsnap.demo.board import MOST_LANES, Board, Lane
from ttsnap.demo.html import VERDICTS, line, picture, short, verdict

PICTURE_SHARE = 0.42
"""The middle of a picture, as a share of its row's height: the score stands below."""


def render_board(board: Board, title: str = "", winner: int | None = None) -> str:
    """The board. winner: the uid with a frame, by default of the best finished candidate. All text is escaped."""
    if winner is None:
        winner = -1 if board.best is None else board.best.uid
    table = Table(board, winner)
    if not table.lanes or not table.rows:
        return f'<div class="tt-board">{_head(board, title, 0)}{line("idle", "waiting for the first scores")}</div>'
    labels = '<div class="tt-row tt-corner" style="grid-row:1"><small>seed</small></div>'
    labels += "".join(map(table.row_label, table.rows))
    heads = "".join(map(table.column_label, table.lanes))
    cells = "".join(table.cell(lane, step) for lane in table.lanes for step in table.rows)
    room = max(len(table.lanes), 0 if board.over else MOST_LANES)  # columns that are to come change no width
    style = f"--n:{len(table.lanes)};--room:{room};--r:{len(table.rows)}"
    grid = f'<div class="tt-grid" style="{style}">{table.lines()}{labels}{heads}{cells}</div>'
    head = _head(board, title, len(table.lanes))
    return f'<div class="tt-board">{head}<div class="tt-scroll" tabindex="0">{grid}</div></div>'


def _head(board: Board, title: str, shown: int) -> str:
    forks, lanes = board.forks(), board.lanes.values()
    state = Counter(lane.state for lane in lanes if lane.uid not in forks or lane.state != "dropped")
    words = [f"{len(lanes)} candidates", f"{state['dropped']} pruned", f"{state['finished']} finished"]
    words += [f"{state['going']} under way"] if state["going"] else []
    words += [f"{shown} of them are shown"] if 0 < shown < len(lanes) else []
    words += ["↳ marks a branch: same seed, other steps"] if any(lane.parent >= 0 for lane in lanes) else []
    name = f"<b>{escape(title)}</b>" if title else ""
    return f'<div class="tt-boardhead">{name}<span>{" · ".join(words)}</span></div>'


class Table:
    """The grid of a board: its columns, its rows, and their parts as HTML."""

    def __init__(self, board: Board, winner: int) -> None:
        self.board, self.winner = board, winner
        self.lanes, self.rows = board.placed(), board.rows
        self.column = {lane.uid: place for place, lane in enumerate(self.lanes)}
        self.row = {step: place for place, step in enumerate(self.rows)}
        self.forks = board.forks()
        scores = [v for lane in board.lanes.values() for v in lane.scores.values() if math.isfinite(v)]
        self.low, self.high = (min(scores), max(scores)) if scores else (0.0, 1.0)

    def row_label(self, step: int) -> str:
        board = self.board
        drafted = board.looks.get(step) == {"draft"}
        name = "finished" if step == board.steps else "draft" if drafted else f"step {step}"
        noise = "" if step == board.steps else f"<small>noise {board.levels[step]:.2f}</small>"
        return f'<div class="tt-row" style="grid-row:{self.row[step] + 2}">{name}{noise}</div>'

    def column_label(self, lane: Lane) -> str:
        born = "" if lane.parent < 0 else f", branched off {lane.parent} at step {lane.born}"
        about = f"candidate {lane.uid}, seed {lane.seed}{born}"
        kind = " tt-crown" if lane.uid == self.winner else " tt-off" if lane.state == "dropped" else ""
        style = f"grid-column:{self.column[lane.uid] + 2}"
        hand = ""
        if self.board.wishes is not None and lane.state in ("going", "waiting"):
            said = next((wish.verb for wish in reversed(self.board.wishes) if wish.uid == lane.uid), "")
            both = (f'<button data-verb="{verb}" data-uid="{lane.uid}">{verb}</button>' for verb in (FINISH, DROP))
            hand = f'<span data-asked="{said}">{"".join(both)}</span>'
        return f'<div class="tt-col{kind}" style="{style}" title="{about}">{lane.name}{hand}</div>'

    def cell(self, lane: Lane, step: int) -> str:
        where = f"grid-area:{self.row[step] + 2}/{self.column[lane.uid] + 2}"
        if step not in lane.scores:
            if lane.state == "going" and lane.aim == step:
                return f'<div class="tt-cell tt-pending" style="{where}"><i></i><span>&nbsp;</span></div>'
            return ""
        score, last = lane.scores[step], step == self.board.steps
        failed = math.isnan(score)
        pruned = lane.state == "dropped" and step == lane.reached and step > self.forks.get(lane.uid, -1)
        uri = lane.pictures.get(step)
        kinds = {
            "tt-cell": True,
            "tt-pruned": pruned,
            "tt-winner": last and lane.uid == self.winner,
            "tt-failed": failed and uri is None,
        }
        text = "failed" if failed else short(score)
        right = verdict(lane.right) if last else ""
        about = f"seed {lane.name}, step {step}: {text}{right and VERDICTS[bool(lane.right)]}"
        about += " · pruned here" if pruned else ""
        if uri is not None:
            inner = picture(uri, about)
        else:
            share = 0.0 if failed or self.high == self.low else (score - self.low) / (self.high - self.low)
            inner = f'<i style="--v:{share * 100:.0f}%"></i>'
        kind = " ".join(name for name, holds in kinds.items() if holds)
        return f'<div class="{kind}" style="{where}" title="{about}">{inner}<span>{text}{right}</span></div>'

    def lines(self) -> str:
        """Lines down each candidate that went on, and from parents to children; those of the winner stand out."""
        board = self.board
        way = board.lineage(self.winner)
        # By uid of the winner and its ancestors, the last step of each on the winner's way.
        golden = dict(zip(way, [board.steps] + [board.lanes[uid].born for uid in way[:-1]], strict=False))
        plain: list[str] = []
        gold: list[str] = []
        for lane in self.lanes:
            x = self.column[lane.uid] + 0.5
            steps = sorted(lane.scores) + ([lane.aim] if lane.state == "going" else [])
            ys = [self.row[step] + PICTURE_SHARE for step in steps]
            won = [y for y, step in zip(ys, steps, strict=True) if step <= golden.get(lane.uid, -1)]
            gold += [f"M{x} {won[0]:g}V{won[-1]:g}"] if len(won) > 1 else []
            rest = ys[max(0, len(won) - 1) :]
            plain += [f"M{x} {rest[0]:g}V{rest[-1]:g}"] if len(rest) > 1 else []
            parent = board.lanes.get(lane.parent)
            if parent is None or parent.uid not in self.column or not ys or not parent.scores:
                continue
            above = [step for step in parent.scores if step <= lane.born] or parent.scores
            x0, y0, y1 = self.column[parent.uid] + 0.5, self.row[max(above)] + PICTURE_SHARE, ys[0]
            middle = (y0 + y1) / 2 if y1 > y0 else min(y0, y1) - 0.55
            path = f"M{x0} {y0:g}C{x0} {middle:g} {x} {middle:g} {x} {y1:g}"
            (gold if lane.uid in golden else plain).append(path)
        lines = f'<path d="{"".join(plain)}"/><path class="tt-gold" d="{"".join(gold)}"/>'
        box = f"0 0 {len(self.lanes)} {len(self.rows)}"
        return f'<svg class="tt-threads" viewBox="{box}" preserveAspectRatio="none">{lines}</svg>'
