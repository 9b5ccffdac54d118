"""The stage as HTML: best image, meters, kept images, chart and boards; and a stage without a
search."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from ttsnap.core.results import Led
from ttsnap.demo.chart import render_chart
from ttsnap.demo.html import answers_in_words, figure, line, picture, shaped, short, token, verdict
from ttsnap.loop.budget import Budget
from ttsnap.results.course import Cell, Course, Drawing, Tracked, drawn


@dataclass(eq=False)
class Hand:
    """A visitor's hand on a search."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Ends it."""
    led: Led | None = None
    """The search as it runs; None before, and of a comparison."""
    asked: dict[int, str] = field(default_factory=dict)
    """What was last asked of each candidate."""


@dataclass
class View:
    """One search on the page. Its note and what it kept come at its end."""

    title: str
    course: Course
    allowed: Budget
    seconds: float
    """Time that the search may take."""
    pictures: dict[tuple[int, int], str] = field(default_factory=dict)
    """What was scored, by candidate and step, as data URIs."""
    best: str = ""
    """The best finished image, large."""
    note: str = ""
    """Warnings."""
    kept: tuple[tuple[str, str], ...] = ()
    """The other kept images, best first: a data URI and a caption each."""
    source: str = ""
    """The picture that the search changes, as a data URI."""
    aspect: float = 1.0
    """Width of the images by their height."""
    hand: Hand | None = None
    """The visitor's; None where nobody leads the search."""


BOARD_COLUMNS = 18
"""Of pictures on the board, at most, in one band: what is not in sight is reached by scrolling."""


def render_board(view: View, title: str = "") -> str:
    """The board. All text is escaped."""
    drawing = drawn(view.course, BOARD_COLUMNS, 1)
    name = f"<b>{escape(title)}</b>" if title else ""
    head = f'<div class="tt-boardhead">{name}<span>{escape(drawing.words)}</span></div>'
    head += _items(view)
    if not drawing.cells:
        idle = line("idle", "waiting for the first scores")
        return f'<div class="tt-board">{head}{idle}</div>'
    table = Table(view, drawing)
    labels = '<div class="tt-row tt-corner" style="grid-row:1"><small>seed</small></div>'
    labels += "".join(map(table.row_label, drawing.bands[0]))
    seeds = "".join(table.seed(column, one) for (_, column), one in drawing.heads.items())
    cells = "".join(map(table.cell, drawing.cells.values()))
    style = f"--n:{drawing.columns};--r:{len(drawing.bands[0])}"
    kind = "tt-grid tt-answered" if view.course.asked else "tt-grid"
    grid = f'<div class="{kind}" style="{style}">{labels}{seeds}{cells}</div>'
    return f'<div class="tt-board">{head}<div class="tt-scroll" tabindex="0">{grid}</div></div>'


def _items(view: View) -> str:
    """The items of a checklist as buttons, which light the images that have them; and how many of
    the finished ones that are."""
    items = (
        f'<button type="button" class="tt-item" data-item="{escape(token(words))}">'
        f"{escape(words)} <small>{had}</small></button>"
        for words, had in view.course.answers.items()
    )
    about = "light the images that have it; the number of finished ones that do"
    inner = "".join(items)
    return f'<div class="tt-items" title="{about}">{inner}</div>' if inner else ""


class Table:
    """The parts of a board as HTML: the one band of a drawing."""

    def __init__(self, view: View, drawing: Drawing) -> None:
        self.view = view
        self.drawing = drawing
        shown = sorted(drawing.cells.values(), key=lambda cell: cell.row)
        self.feet = {cell.led: cell.look for cell in shown}

    def row_label(self, step: int) -> str:
        name, noise = self.drawing.names[step]
        row = self.drawing.bands[0].index(step) + 2
        small = f"<small>{noise}</small>" if noise else ""
        return f'<div class="tt-row" style="grid-row:{row}">{name}{small}</div>'

    def seed(self, column: int, best: Tracked) -> str:
        """The seed of a column, which stands out above the best image."""
        kind = " tt-crown" * (best is self.view.course.best)
        return f'<div class="tt-col{kind}" style="grid-column:{column + 2}">{best.seed}</div>'

    def cell(self, cell: Cell) -> str:
        """A picture with its score below."""
        uri = self.view.pictures.get(cell.look)
        about, text = self.words(cell)
        kinds = {
            "tt-cell": True,
            "tt-pending": cell.score is None,
            "tt-pruned": cell.dim,
            "tt-winner": cell.place == 0,
            "tt-failed": uri is None and cell.score is not None and math.isnan(cell.score.value),
        }
        kind = " ".join(name for name, holds in kinds.items() if holds)
        inner = "<i></i>" if uri is None else picture(uri, about)
        style = f"grid-area:{cell.row + 2}/{cell.column + 2}"
        return (
            f'<div class="{kind}" style="{style}" title="{escape(about)}"{self.led(cell)}>'
            f"{inner}<span>{text}</span>{self.answers(cell)}</div>"
        )

    def words(self, cell: Cell) -> tuple[str, str]:
        """What a cell shows in words, and what stands below its picture, as HTML."""
        about = f"seed {cell.candidate.name}"
        if cell.score is None:
            return about, "&nbsp;"
        score = "failed" if math.isnan(cell.score.value) else short(cell.score.value)
        about += f", step {cell.look[1]}: {score}{answers_in_words(cell.score)}"
        items = self.view.course.asked
        answers = cell.score.answers
        marks = (verdict(met) for name, met in answers.items() if name not in items)
        return about + " · pruned here" * cell.dim, score + "".join(marks)

    def answers(self, cell: Cell) -> str:
        """Ticks and crosses for the items of a checklist, and which of them a picture has."""
        items = self.view.course.asked
        if cell.score is None or not items:
            return ""
        met = {name: yes for name, yes in cell.score.answers.items() if name in items}
        has = " ".join(token(name) for name, yes in met.items() if yes)
        marks = "".join(map(verdict, met.values()))
        return f'<span class="tt-marks" data-has="{escape(has)}">{marks}</span>'

    def led(self, cell: Cell) -> str:
        """The attributes by which a click on a picture finds the candidate that it belongs to
        (page.js)."""
        hand = self.view.hand
        if cell.led is None or hand is None or self.view.course.over:
            return ""
        foot = cell.look == self.feet[cell.led]
        command = f' data-asked="{hand.asked.get(cell.led, "")}"' if foot else ""
        return f' data-uid="{cell.led}"{command}'


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


def intro() -> str:
    """The stage before the first search."""
    fates = [3, 3, 3, 2, 2, 1, 1, 1, 1, 1]
    ghosts = "".join(f"<span>{'<i></i>' * fate}</span>" for fate in fates)
    return INTRO.format(ghosts=ghosts)


def render_plain(head: str, text: str, *, error: bool = False) -> str:
    """A stage of words. All text is escaped."""
    lines = escape(text).replace("\n", "<br>")
    return PLAIN.format(kind=" tt-error" if error else "", head=escape(head), text=lines)


def render_stage(prompt: str, views: Sequence[View], status: str = "") -> str:
    """The whole stage; of a comparison what is compared comes first. All text is escaped."""
    many = len(views) > 1
    best = _wipe(views[0].source, views) + "".join(_best(view, many) for view in views)
    meters = "".join(_meters(view, i if many else None) for i, view in enumerate(views))
    boards = "".join(render_board(v, v.title if many else "") for v in views)
    allowed = max(1 if view.allowed.seconds else view.allowed.nfe or 1 for view in views)
    chart = render_chart([(view.title, view.course) for view in views], allowed)
    head = line("prompt", prompt) + line("status", status)
    kept = "".join(_kept(view, many) for view in views)
    notes = "".join(line("note", view.note) for view in views if view.note)
    return (
        f'<div class="tt-stage{" tt-two" if many else ""}"{shaped(views[0].aspect)}>'
        f'<div class="tt-top"><div class="tt-bests">{best}</div>'
        f'<div class="tt-side">{head}{meters}{chart}</div></div>{notes}{kept}{boards}</div>'
    )


def _wipe(source: str, views: Sequence[View]) -> str:
    """The picture before, and over it the best image of the first view, with a wipe between."""
    if not source:
        return ""
    before = f'<img src="{source}" alt="before">'
    after = views[0].best
    if not after:
        return figure(f"<div>{before}</div>", "<span>before</span>", "tt-best tt-wipe")
    over = f'<img class="tt-after" src="{after}" alt="after">'
    wipe = '<input type="range" value="100" aria-label="how much of the image before is shown">'
    words = "<span>before, and after: move the slider</span>"
    return figure(f"<div>{before}{over}</div>{wipe}", words, "tt-best tt-wipe")


def _best(view: View, named: bool) -> str:
    """The best image so far, large; before the first the most promising candidate."""
    name = f"<b>{escape(view.title)}</b> " if named else ""
    best = view.course.best
    if best is None or not view.best:
        hoped = next((one for one in view.course.ranked() if _seen(view, one)), None)
        if hoped is None:
            return figure(line("none", "no finished image yet"), name, "tt-best")
        words = f"most promising: seed {hoped.name}, still noisy"
        shown = picture(_seen(view, hoped), words)
        return figure(shown, f"{name}<span>{words}</span>", "tt-best tt-hoped")
    score = best.scores[best.reached]
    said = answers_in_words(score)
    words = f"{'best' if view.course.over else 'best so far'}: seed {best.name}"
    words += "" if best.rank == -math.inf else f", reward {short(best.rank)}"
    shown = picture(view.best, words + said)
    items = view.course.asked
    lines = "".join(
        f"<div>{verdict(met)} {escape(item if met or item in items else f'not {item}')}</div>"
        for item, met in score.answers.items()
    )
    return figure(shown, f"{name}<span>{words}</span>{lines}", "tt-best")


def _seen(view: View, candidate: Tracked) -> str:
    """The last picture of a candidate, "" before the first."""
    return view.pictures.get((candidate.uid, candidate.reached), "")


def _kept(view: View, named: bool) -> str:
    name = f"<b>{escape(view.title)}</b>" if named else ""
    figures = "".join(figure(picture(uri, text), escape(text)) for uri, text in view.kept)
    return f'<div class="tt-kept">{name}{figures}</div>' if figures else ""


def _meters(view: View, place: int | None) -> str:
    """The spending: as meters, or as a line with the search's name where it is one of two.

    Two searches have one clock, the evaluations: seconds would say which of them ran while the
    machine was busy.
    """
    course = view.course
    caps = view.allowed
    nfe = round(course.nfe)
    if place is not None:
        cap = "" if caps.nfe is None else f" of {caps.nfe:,}"
        words = f"{nfe:,}{cap} evaluations, {course.reward_calls:,} scored"
        return (
            f'<div class="tt-line tt-c{place}"><b>{escape(view.title)}</b>'
            f" {words}{_bar(nfe, caps.nfe)}</div>"
        )
    rows = [
        ("evaluations", nfe, caps.nfe),
        ("decodes", course.decodes, caps.decodes),
        ("reward calls", course.reward_calls, caps.reward_calls),
        ("seconds", course.seconds, view.seconds),
    ]
    return f'<div class="tt-meters">{"".join(_meter(*row) for row in rows)}</div>'


def _meter(name: str, spent: float, cap: float | None) -> str:
    text = f"{spent:,.1f}" if isinstance(spent, float) else f"{spent:,}"
    limit = "" if cap is None else f"<small> / {cap:,.0f}</small>"
    inside = f"<span>{name}</span><b>{text}{limit}</b>{_bar(spent, cap)}"
    return f'<div class="tt-meter" title="{METERS[name]}">{inside}</div>'


def _bar(spent: float, cap: float | None) -> str:
    if not cap:
        return '<div class="tt-bar tt-free"></div>'
    return f'<div class="tt-bar"><i style="width:{100 * min(1.0, spent / cap):.1f}%"></i></div>'
