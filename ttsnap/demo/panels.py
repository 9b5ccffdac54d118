"""The stage as HTML: best image, meters, kept images, chart and boards; and a stage without a
search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ttsnap.demo.board import Board
from ttsnap.demo.board_html import render_board
from ttsnap.demo.chart import render_chart
from ttsnap.demo.html import VERDICTS, figure, line, picture, shaped, short, verdict
from ttsnap.loop.budget import Budget

INTRO = """<div class="tt-stage tt-empty"><div class="tt-ghosts">{ghosts}</div>
<h2>Watch a search decide where compute goes</h2>
<p>Many seeds start. Each is scored while it is still noise, from the image that the model already expects. Poor ones
are dropped, good ones go on or branch, and the best finished image wins. Every evaluation of the model counts against
one budget.</p></div>"""
PLAIN = '<div class="tt-stage tt-empty{kind}"><h2>{head}</h2><p>{text}</p></div>'
METERS = {
    "evaluations": "runs of the denoising network, the unit of the budget",
    "decodes": "images decoded from latents, to be scored or returned",
    "reward calls": "images scored",
    "seconds": "time since the search began",
}


@dataclass
class View:
    """One search on the page. Its note and what it kept come at its end."""

    title: str
    board: Board
    allowed: Budget
    seconds: float
    """Time that the search may take."""
    note: str = ""
    """Warnings."""
    kept: tuple[tuple[str, str], ...] = ()
    """The other kept images, best first: a data URI and a caption each."""
    source: str = ""
    """The picture that the search changes, as a data URI."""
    aspect: float = 1.0
    """Width of the images by their height."""


def intro() -> str:
    """The stage before the first search."""
    fates = [3, 1, 2, 1, 3, 1, 1, 2, 1, 3]
    ghosts = "".join(f"<span>{'<i></i>' * fate}</span>" for fate in fates)
    return INTRO.format(ghosts=ghosts)


def render_plain(head: str, text: str, *, error: bool = False) -> str:
    """A stage of words. All text is escaped."""
    lines = escape(text).replace("\n", "<br>")
    return PLAIN.format(kind=" tt-error" if error else "", head=escape(head), text=lines)


def render_stage(prompt: str, views: Sequence[View], status: str = "") -> str:
    """The whole stage. All text is escaped."""
    many = len(views) > 1
    best = _wipe(views[0].source, views) + "".join(_best(view, many) for view in views)
    meters = "".join(_meters(view, i if many else None) for i, view in enumerate(views))
    boards = "".join(render_board(v.board, v.title if many else "") for v in reversed(views))
    allowed = max(1 if view.allowed.seconds else view.allowed.nfe or 1 for view in views)
    chart = render_chart([(view.title, view.board) for view in views], allowed)
    head = line("prompt", prompt) + line("status", status)
    kept = "".join(_kept(view, many) for view in views)
    notes = "".join(line("note", view.note) for view in views if view.note)
    return (
        f'<div class="tt-stage{" tt-two" if many else ""}"{shaped(views[0].aspect)}>'
        f'<div class="tt-top"><div class="tt-bests">{best}</div>'
        f'<div class="tt-side">{head}{meters}{chart}</div></div>{notes}{kept}{boards}</div>'
    )


def _wipe(source: str, views: Sequence[View]) -> str:
    """The picture before, and over it the best image of the last view, with a wipe between."""
    if not source:
        return ""
    after = views[-1].board.picture
    over = f'<img class="tt-after" src="{after}" alt="after">' if after else ""
    wipe = (
        '<input type="range" value="100" aria-label="how much of the image before is shown">'
        if after
        else ""
    )
    words = "before, and after: move the slider" if after else "before"
    inside = f'<div><img src="{source}" alt="before">{over}</div>{wipe}'
    return figure(inside, f"<span>{words}</span>", "tt-best tt-wipe")


def _best(view: View, named: bool) -> str:
    lane = view.board.best
    name = f"<b>{escape(view.title)}</b> " if named else ""
    if lane is None and (hope := view.board.hope) is not None:
        words = f"most promising: seed {hope.name}, still noisy"
        return figure(
            picture(hope.pictures[hope.reached], words),
            f"{name}<span>{words}</span>",
            "tt-best tt-hoped",
        )
    if lane is None or not view.board.picture:
        return figure(line("none", "no finished image yet"), name, "tt-best")
    score = "" if lane.value == -math.inf else f", reward {short(lane.value)}"
    words = f"{'best' if view.board.over else 'best so far'}: seed {lane.name}{score}"
    right = "" if lane.right is None else f"{verdict(lane.right)}{VERDICTS[lane.right][1:]}"
    return figure(
        picture(view.board.picture, words), f"{name}<span>{words}</span>{right}", "tt-best"
    )


def _kept(view: View, named: bool) -> str:
    name = f"<b>{escape(view.title)}</b>" if named else ""
    figures = "".join(figure(picture(uri, text), escape(text)) for uri, text in view.kept)
    return f'<div class="tt-kept">{name}{figures}</div>' if figures else ""


def _meters(view: View, place: int | None) -> str:
    """The spending: as meters, or as a line with the search's name where it is one of two.

    Two searches have one clock, the evaluations: seconds would say which of them ran while the
    machine was busy.
    """
    spent, caps = view.board.spent, view.allowed
    if place is not None:
        cap = "" if caps.nfe is None else f" of {caps.nfe:,}"
        words = f"{spent.nfe:,}{cap} evaluations, {spent.reward_calls:,} scored"
        return (
            f'<div class="tt-line tt-c{place}"><b>{escape(view.title)}</b>'
            f" {words}{_bar(spent.nfe, caps.nfe)}</div>"
        )
    rows = [
        ("evaluations", spent.nfe, caps.nfe),
        ("decodes", spent.decodes, caps.decodes),
        ("reward calls", spent.reward_calls, caps.reward_calls),
        ("seconds", view.board.seconds, view.seconds),
    ]
    return f'<div class="tt-meters">{"".join(_meter(*row) for row in rows)}</div>'


def _meter(name: str, spent: float, cap: float | None) -> str:
    text = f"{spent:,.1f}" if isinstance(spent, float) else f"{spent:,}"
    limit = "" if cap is None else f"<small> / {cap:,.0f}</small>"
    return (
        '<div class="tt-meter"'
        f' title="{METERS[name]}"><span>{name}</span><b>{text}{limit}</b>{_bar(spent, cap)}</div>'
    )


def _bar(spent: float, cap: float | None) -> str:
    if not cap:
        return '<div class="tt-bar tt-free"></div>'
    return f'<div class="tt-bar"><i style="width:{100 * min(1.0, spent / cap):.1f}%"></i></div>'
