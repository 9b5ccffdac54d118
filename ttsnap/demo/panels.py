"""What stands around the board, as HTML: best image, meters, the curve, kept images, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ttsnap.budget import Budget
from ttsnap.demo.board import Board
from ttsnap.demo.board_html import render_board, short

INTRO = """<div class="tt-stage tt-empty"><div class="tt-ghosts">{ghosts}</div>
<h2>Watch a search decide where compute goes</h2>
<p>Many seeds start. Each is scored while it is still noise, from the image that the model already expects. Poor ones
are dropped, good ones go on or branch, and the best finished image wins. Every evaluation counts against one
budget.</p></div>"""


CURVE = "best finished image by evaluations (dots: every score)"
MOST_MARKS = 500


@dataclass
class View:
    """One search on the page: its name, its board, and what it may spend.

    Once it is over: the winner's uid, warnings, and the other kept images (data URI, what it is), best first.
    """

    title: str
    board: Board
    allowed: Budget
    seconds: float
    winner: int | None = None
    note: str = ""
    kept: tuple[tuple[str, str], ...] = ()


def intro() -> str:
    """What stands on the stage before the first search."""
    fates = [3, 1, 2, 1, 3, 1, 1, 2, 1, 3]
    ghosts = "".join(f'<span style="--h:{fate}"></span>' for fate in fates)
    return INTRO.format(ghosts=ghosts)


def render_stage(prompt: str, views: Sequence[View], status: str = "") -> str:
    """The whole stage. All text in it is escaped."""
    many = len(views) > 1
    best = "".join(_best(view, many) for view in views)
    meters = "".join(_meters(view, many) for view in views)
    boards = "".join(render_board(v.board, v.title if many else "", v.winner) for v in reversed(views))
    head = f'<div class="tt-prompt">{escape(prompt)}</div><div class="tt-status">{escape(status)}</div>'
    kept = "".join(_kept(view, many) for view in views)
    notes = "".join(f'<div class="tt-note">{escape(v.note)}</div>' for v in views if v.note)
    return (
        f'<div class="tt-stage{" tt-two" if many else ""}"><div class="tt-top"><div class="tt-bests">{best}</div>'
        f'<div class="tt-side">{head}{meters}{render_curve(views)}</div></div>{notes}{kept}{boards}</div>'
    )


def _best(view: View, named: bool) -> str:
    lane = view.board.best
    name = f"<b>{escape(view.title)}</b> " if named else ""
    if lane is None or not view.board.picture:
        none = '<div class="tt-none">no finished image yet</div>'
        return f'<figure class="tt-best">{none}<figcaption>{name}</figcaption></figure>'
    score = "" if lane.value == -math.inf else f"reward {short(lane.value)}"
    which = "best" if view.board.over else "best so far"
    alt = f"{which}, seed {lane.seed}"
    return (
        f'<figure class="tt-best"><img src="{view.board.picture}" alt="{alt}" decoding="sync">'
        f"<figcaption>{name}<span>{which}: seed {lane.seed}, {score}</span></figcaption></figure>"
    )


def _kept(view: View, named: bool) -> str:
    name = f"<b>{escape(view.title)}</b>" if named else ""
    images = ((f'<img src="{picture}" alt="" decoding="sync">', escape(text)) for picture, text in view.kept)
    figures = "".join(f"<figure>{image}<figcaption>{text}</figcaption></figure>" for image, text in images)
    return f'<div class="tt-kept">{name}{figures}</div>' if figures else ""


def _meters(view: View, named: bool) -> str:
    spent, caps = view.board.spent, view.allowed
    rows = [
        ("evaluations", spent.nfe, caps.nfe),
        ("decodes", spent.decodes, caps.decodes),
        ("reward calls", spent.reward_calls, caps.reward_calls),
        ("seconds", view.board.seconds, view.seconds),
    ]
    name = f'<div class="tt-name">{escape(view.title)}</div>' if named else ""
    return f'{name}<div class="tt-meters">{"".join(_meter(*row) for row in rows)}</div>'


def _meter(name: str, spent: float, cap: float | None) -> str:
    text = f"{spent:,.1f}" if isinstance(spent, float) else f"{spent:,}"
    limit = "" if cap is None else f"<small> / {cap:,.0f}</small>"
    share = 0.0 if not cap else min(1.0, spent / cap)
    bar = (
        f'<div class="tt-bar"><i style="width:{share * 100:.1f}%"></i></div>'
        if cap
        else '<div class="tt-bar tt-free"></div>'
    )
    return f'<div class="tt-meter"><span>{name}</span><b>{text}{limit}</b>{bar}</div>'


def render_curve(views: Sequence[View]) -> str:
    """Best reward so far against denoiser evaluations, a line for each search."""
    points = [point for view in views for point in (*view.board.curve, *view.board.marks[-MOST_MARKS:])]
    right = max([float(x) for x, _ in points] + [float(v.allowed.nfe or 1) for v in views] + [1.0])
    values = [y for _, y in points if math.isfinite(y)]
    bottom, top = (min(values), max(values)) if values else (0.0, 1.0)
    pad = 0.16 * (top - bottom) or 1.0
    low, high = bottom - pad, top + pad
    lines: list[str] = []
    dots: list[str] = []
    for i, view in enumerate(views):
        kind = i if len(views) > 1 else 1
        marks, shown = (
            [(x / right * 100, (high - y) / (high - low) * 100) for x, y in points if math.isfinite(y)]
            for points in (view.board.marks[-MOST_MARKS:], view.board.curve)
        )
        if marks:
            path = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in marks)
            lines.insert(0, f'<path class="tt-marks{kind}" d="{path}"/>')
        if shown:
            path = f"M{shown[0][0]:.2f} {shown[0][1]:.2f}" + "".join(f"H{x:.2f}V{y:.2f}" for x, y in shown[1:])
            lines.append(f'<path class="tt-line{kind}" d="{path}"/>')
            where, value = f"left:{shown[-1][0]:.2f}%;top:{shown[-1][1]:.2f}%", short(view.board.curve[-1][1])
            dots.append(f'<i class="tt-dot{kind}" style="{where}"></i>')
            dots.append(f'<b class="tt-value{kind}" style="{where}">{value}</b>')
    keys = (
        "".join(f'<span class="tt-key{i}">{escape(v.title)}</span>' for i, v in enumerate(views))
        if len(views) > 1
        else ""
    )
    ends = [f'<span class="tt-y">{short(top)}</span>', f'<span class="tt-y tt-low">{short(bottom)}</span>']
    axis = "".join(ends) if top > bottom and values else ""
    return (
        f'<div class="tt-curve"><div class="tt-curvehead"><span>{CURVE}</span>{keys}</div>'
        f'<div class="tt-plot"><svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(lines)}</svg>'
        f'{"".join(dots)}{axis}</div><div class="tt-x"><span>0</span><span>{right:,.0f} NFE</span></div></div>'
    )


def render_settings(payload: Mapping[str, Any]) -> str:
    """Settings from a picture as a table. Long values are cut, all of them are escaped."""
    rows: list[tuple[str, str]] = []
    for key, value in list(payload.items())[:40]:
        inner = list(value.items())[:40] if isinstance(value, dict) else [("", value)]
        rows += [(f"{key} {name}".strip()[:80], str(item)[:300]) for name, item in inner]
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<table class="tt-settings">{cells}</table>'
