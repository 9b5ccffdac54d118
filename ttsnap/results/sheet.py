"""The contact sheet of a search, painted: its best candidates first, a row for each step."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from ttsnap.core.outcome import SHOWN
from ttsnap.core.results import Result
from ttsnap.results.course import DROPPED, Cell, Course, Drawing, Look, Score, drawn
from ttsnap.results.media import data_uri, still

CELL = 96
MARGIN = 8
HEAD = 68
LEFT = 76
"""The longer side of a picture in pixels, the room between columns, that of the page's head, and
that of the rows' names."""
SCALES = (1.0, 0.75, 0.5)
"""By which pictures are made smaller where there are many; the narrowest column has half a CELL."""
TEXT_HEIGHT = 15
ROW_GAP = 10
NAME_HEIGHT = 20
"""Pixels below a picture: for its score, and the room to the next row; and above a band, for
the names of its seeds."""
MARK_HEIGHT = 12
"""Pixels of a line with the answer to an item of a checklist."""
LEAST = 640
WIDEST = 1740
TALLEST = 1500
LIVE = (640, 560)
"""Pixels of a sheet: its width at least and at most, its height at most; and of one under way."""
HIGH = 192
FINE = 128
"""Pixels of an image's height in a notebook, and of a side from which on it is not shown as
squares."""
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Thumbnails: TypeAlias = Mapping[Look, Image.Image]
"""Small pictures of what was scored, by candidate and step."""


class Colours(NamedTuple):
    """What a sheet is painted in."""

    ground: str
    blank: str
    """Of a look without a picture."""
    ink: str
    soft: str
    """Of words about the search."""
    pale: str
    """Of words below what was given up."""
    line: str
    winner: str
    """Also of what is there."""
    missing: str


PAPER = Colours(
    "#ffffff", "#eeeeee", "#000000", "#555555", "#999999", "#b8b8b8", "#1a7f37", "#b3261e"
)
NIGHT = Colours(
    "#202020", "#303030", "#eeeeee", "#aaaaaa", "#888888", "#585858", "#3ddc84", "#ff8f85"
)
FADED = 0.65
"""The share of the ground in a picture that was given up."""


def contact_sheet(result: Result, thumbnails: Thumbnails) -> Image.Image:
    """The looks of a search: steps are rows, the winner's column is the first.

    Dropped candidates are dimmed, kept images are framed, a score is under each picture, and below
    it a tick or a cross for each item of a checklist, of finished images with its words. The
    picture that the prompt changes (`Result.source`) is left of the first row. Of too many
    candidates, the sheet shows the best. A column is of one seed.

    thumbnails: as outputs.Recorder keeps them.
    """
    return painted(Course.of(result), thumbnails, result.prompt, result.source)


def painted(
    course: Course,
    thumbnails: Thumbnails,
    head: str = "",
    source: Image.Image | None = None,
    *,
    live: bool = False,
) -> Image.Image:
    """The sheet of a search, of about so many pixels at most: the largest in which everything has
    room, or else the smallest one.

    live: as a small picture while it runs, dark, of the last looks alone."""
    size, colours = (LIVE, NIGHT) if live else ((WIDEST, TALLEST), PAPER)
    pictures = [*thumbnails.values(), *([] if source is None else [source])]
    width, height = (max((each.size[axis] for each in pictures), default=CELL) for axis in (0, 1))
    above, name = (HEAD // 2, 0) if live else (HEAD, NAME_HEIGHT)
    for scale in SCALES:
        wide = max(round(CELL * SCALES[-1]), round(width * scale))
        high = round(height * scale)
        left = MARGIN if live else LEFT
        left += wide + MARGIN if source is not None else 0
        across = max(1, (size[0] - left - MARGIN) // (wide + MARGIN))
        lines = max(
            1,
            (size[1] - above)
            // (high + TEXT_HEIGHT + MARK_HEIGHT * bool(course.asked) + ROW_GAP + name),
        )
        drawing = drawn(course, across, lines, last=live)
        if drawing.whole:
            break
    items = () if live else tuple(course.asked)
    text = TEXT_HEIGHT + MARK_HEIGHT * bool(course.asked)
    page = Page(drawing, thumbnails, colours, scale, wide, high, left, above, name, text, items)
    page.words(head)
    for cell in drawing.cells.values():
        page.look(cell)
    if source is not None:
        page.picture(source, (LEFT, HEAD))
        page.draw.text((LEFT, HEAD - NAME_HEIGHT - 3), "source", colours.ink, _font(12))
    return page.sheet


@dataclass
class Page:
    """A sheet, and where things are painted on it. All lengths are in pixels."""

    drawing: Drawing
    thumbnails: Thumbnails
    colours: Colours
    scale: float
    """Of pictures, whose longer side has CELL pixels at 1."""
    wide: int
    """A column, without its margin."""
    high: int
    """The highest picture."""
    left: int
    """Where the first column begins."""
    above: int
    """The page's head."""
    name: int
    """Above a band, for the names of its seeds."""
    text: int
    """Below a picture: its score, and the answers about it."""
    asked: Sequence[str]
    """What stands below finished images, a line each."""

    def __post_init__(self) -> None:
        wide = self.left + self.drawing.columns * (self.wide + MARGIN) + MARGIN
        bands = len(self.drawing.bands)
        size = max(LEAST, wide), self.top(bands) - self.name * (bands > 0) + MARGIN
        self.sheet = Image.new("RGB", size, self.colours.ground)
        self.draw = ImageDraw.Draw(self.sheet)

    @property
    def size(self) -> int:
        """Of the font of what stands above and below pictures."""
        return 12 if self.wide >= 64 else 10

    @property
    def pitch(self) -> int:
        """From row to row."""
        return self.high + self.text + ROW_GAP

    def top(self, band: int) -> int:
        """Where the first row of a band begins."""
        bands = self.drawing.bands[:band]
        rows = sum(map(len, bands))
        finished = sum(self.drawing.end in steps for steps in bands)
        listed = MARK_HEIGHT * max(0, len(self.asked) - 1)
        return self.above + rows * self.pitch + band * self.name + finished * listed

    def corner(self, cell: Cell) -> tuple[int, int]:
        """The upper left corner of a look's picture."""
        x = self.left + cell.column * (self.wide + MARGIN)
        return x, self.top(cell.band) + cell.row * self.pitch

    def words(self, head: str) -> None:
        """The page's head, and what each row shows."""
        wide = self.sheet.width - 2 * MARGIN
        ink = self.colours.ink
        self.draw.text((MARGIN, 6), _shorten(head, wide, 15), ink, _font(15))
        said = _shorten(self.drawing.words, wide, 12)
        self.draw.text((MARGIN, 28 if head else 10), said, self.colours.soft, _font(12))
        for band, steps in enumerate(self.drawing.bands):
            for row, step in enumerate(steps):
                label = "\n".join(self.drawing.names.get(step, ())).strip()
                y = self.top(band) + row * self.pitch + self.high // 2 - 16
                self.draw.multiline_text((MARGIN, y), label, ink, _font(12))
        for (band, column), best in self.drawing.heads.items() if self.name else ():
            x = self.left + column * (self.wide + MARGIN)
            words = f"seed {best.seed}"
            if _length(words, self.size) > self.wide:  # the last digits tell long ones apart
                words = f"…{words[-5:]}"
            colour = self.colours.pale if best.state == DROPPED else ink
            self.draw.text((x, self.top(band) - 16), words, colour, _font(self.size))

    def look(self, cell: Cell) -> None:
        """A picture with what stands below it."""
        x, y = self.corner(cell)
        wide, high = self.picture(self.thumbnails.get(cell.look), (x, y), dim=cell.dim)
        words = "…"
        if cell.score is not None:
            words = f"{cell.score.value:.3f}" if math.isfinite(cell.score.value) else "failed"
            self.answers(cell, cell.score)
        self.below(cell, words)
        if cell.place is not None:
            width = 2 if cell.place else 3
            frame = (x - width, y - width, x + wide + width - 1, y + high + width - 1)
            self.draw.rectangle(frame, outline=self.colours.winner, width=width)

    def picture(
        self, picture: Image.Image | None, corner: tuple[int, int], *, dim: bool = False
    ) -> tuple[int, int]:
        """Paste a picture, scaled to the page, and return its size there."""
        if picture is None:
            picture = Image.new("RGB", (self.wide, self.high), self.colours.blank)
        elif self.scale < 1:
            wide, high = (max(1, round(side * self.scale)) for side in picture.size)
            picture = picture.resize((wide, high), Image.Resampling.BOX)
        if dim:
            ground = Image.new("RGB", picture.size, self.colours.ground)
            picture = Image.blend(picture, ground, FADED)
        self.sheet.paste(picture, corner)
        return picture.size

    def answers(self, cell: Cell, score: Score) -> None:
        """Ticks and crosses side by side; of a finished image one below the other, with words."""
        x, y = self.corner(cell)
        y += self.high + TEXT_HEIGHT + 2
        listed = bool(self.asked) and score.step == self.drawing.end
        apart = min(MARK_HEIGHT, self.wide // max(1, len(score.answers)))
        for i, (words, met) in enumerate(score.answers.items()):
            at = (x, y + i * MARK_HEIGHT) if listed else (x + i * apart, y)
            self.mark(at, met=met)
            if listed:
                shown = _shorten(words, self.wide - MARK_HEIGHT, 10)
                colour = self.colours.pale if cell.dim else self.colours.soft
                self.draw.text((x + MARK_HEIGHT, at[1] - 2), shown, colour, _font(10))

    def mark(self, at: tuple[int, int], *, met: bool) -> None:
        """A tick or a cross, whose upper left corner is here: fonts may have neither."""
        x, y = at
        if met:
            self.draw.line([(x, y + 4), (x + 3, y + 7), (x + 8, y)], self.colours.winner, 2)
        else:
            for ends in ((y, y + 7), (y + 7, y)):
                self.draw.line([(x, ends[0]), (x + 7, ends[1])], self.colours.missing, 2)

    def below(self, cell: Cell, words: str) -> None:
        """Write a score."""
        x, y = self.corner(cell)
        ink = self.colours.pale if cell.dim else self.colours.ink
        self.draw.text((x, y + self.high + 2), words, ink, _font(self.size))


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(4096)
def _length(text: str, size: int) -> float:
    """In pixels."""
    return _font(size).getlength(text)


def _shorten(text: str, width: int, size: int) -> str:
    """The text, cut with an ellipsis to at most `width` pixels."""
    text = text.replace("\n", " ")
    if _length(text, size) <= width:
        return text
    while text and _length(text + "…", size) > width:
        text = text[: -max(1, len(text) // 50)]
    return text + "…"


def page_of(result: Result) -> str:
    """A result as notebooks show it: HTML with the images, of videos strips of frames, and the
    contact sheet."""
    pictures = [(still(c.pixels, columns=SHOWN), f"seed {c.seed}") for c in result.images]
    images = [_element(picture, f"height:{HIGH}px", seed) for picture, seed in pictures]
    sheet = contact_sheet(result, result.thumbnails) if result.thumbnails else None
    parts = [f"<div>{html.escape(repr(result))}</div>", f"<div>{''.join(images)}</div>"]
    if sheet is not None:
        parts.append(_element(sheet, "max-width:100%", "contact sheet"))
    return "".join(parts)


def _element(picture: Image.Image, style: str, text: str) -> str:
    # Small pictures are of few colours and sharp edges; photographs would make large PNGs.
    small = max(picture.size) < HIGH
    uri = data_uri(picture, "png") if small else data_uri(picture, "jpeg", quality=90)
    style += ";image-rendering:pixelated" if max(picture.size) < FINE else ""
    return f'<img src="{uri}" alt="{html.escape(text)}" style="{style}">'
