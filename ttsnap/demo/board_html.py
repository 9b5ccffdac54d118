"""The drawing of a search as HTML: looks at candidates over the steps at which they were scored."""

from __future__ import annotations

import math
from html import escape

from ttsnap.demo.html import answered, line, picture, short, token, verdict
from ttsnap.demo.view import View
from ttsnap.results.course import Tracked
from ttsnap.results.drawing import Cell, Drawing, drawn

COLUMNS = 18
"""Of pictures on the board, at most, in one band: what is not in sight is reached by scrolling."""


def render_board(view: View, title: str = "") -> str:
    """The board. All text is escaped."""
    drawing = drawn(view.course, COLUMNS, 1)
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
        about += f", step {cell.look[1]}: {score}{answered(cell.score)}"
        asked = self.view.course.asked
        answers = cell.score.answers
        marks = (verdict(met) for name, met in answers.items() if name not in asked)
        return about + " · pruned here" * cell.dim, score + "".join(marks)

    def answers(self, cell: Cell) -> str:
        """Ticks and crosses for the items of a checklist, and which of them a picture has."""
        asked = self.view.course.asked
        if cell.score is None or not asked:
            return ""
        met = {name: yes for name, yes in cell.score.answers.items() if name in asked}
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
        asked = f' data-asked="{hand.asked.get(cell.led, "")}"' if foot else ""
        return f' data-uid="{cell.led}"{asked}'
