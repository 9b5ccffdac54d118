"""The contact sheet of a search: the looks at its candidates, a row for each step, with lines of
descent."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ttsnap.core.looks import ESTIMATE
from ttsnap.core.outcome import SHOWN
from ttsnap.core.particles import Particles
from ttsnap.core.results import Result
from ttsnap.results.lineage import (
    CandidateAtStep,
    Origins,
    chain,
    choose,
    hidden_below,
    mixed,
    most_wanted,
    origins,
    place,
)
from ttsnap.results.media import data_uri, still

CELL, LEAST_CELL, MARGIN, HEAD, LEFT = 96, 48, 8, 68, 76
"""The longer side of a picture in pixels, and that of one where there are many rows, or the width
of a column at least; the room between columns, that of the page's head, and that of the rows'
names."""
TEXT, GAP = 15, 10
"""Pixels below a picture: for its score, and for the lines to the next row."""
WIDEST, TALLEST = 1740, 1500
HIGH = 192
"""Pixels of an image's height in a notebook."""
INK, PALE, LINE, WINNER = "black", "#999999", "#b8b8b8", "#1a7f37"
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Page:
    """The layout of a sheet."""

    scale: float
    """Of pictures, whose longer side has CELL pixels at 1."""
    wide: int
    """Pixels of a column, without its margin."""
    high: int
    """Pixels of the highest picture."""
    lines: dict[int, int]
    """The row of each step."""
    left: int
    """The first pixel of the first column."""
    columns: dict[CandidateAtStep, int]
    """The column of each look."""

    def corner(self, look: CandidateAtStep) -> tuple[int, int]:
        """The upper left corner of a look's picture; a seed stands above the first row."""
        line = self.lines.get(look.step, -1)
        return self.left + self.columns[look] * (self.wide + MARGIN), HEAD + line * self.pitch

    @property
    def pitch(self) -> int:
        """Pixels from row to row."""
        return self.high + TEXT + GAP

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet, in pixels."""
        wide = (
            self.left + (max(self.columns.values(), default=0) + 1) * (self.wide + MARGIN) + MARGIN
        )
        return max(640, wide), HEAD + len(self.lines) * self.pitch + MARGIN


def contact_sheet(result: Result, thumbnails: Mapping[tuple[int, int], Image.Image]) -> Image.Image:
    """The looks of a search: steps are rows, the winner's column is the first, lines lead to
    continuations.

    Dropped candidates are dimmed, kept images are framed, a score is under each picture. The
    picture that the prompt changes (`Result.source`) is left of the first row.

    thumbnails: by candidate and step (outputs.Recorder). Of too many candidates, the sheet shows
    the kept ones, the longest denoised, and some that were pruned; "+3" means that three more
    descend from a look.
    """
    origin, kept = origins(result.trace, thumbnails), [candidate.uid for candidate in result.images]
    ends = most_wanted(origin, kept, lambda uid: float(result.particles.value([uid])[0]))
    steps = sorted({step for _, step in thumbnails})
    pictures = [*thumbnails.values(), *([] if result.source is None else [result.source])]
    width, height = (max((each.size[axis] for each in pictures), default=CELL) for axis in (0, 1))
    scale = min(1.0, max(LEAST_CELL / CELL, (TALLEST // max(1, len(steps)) - TEXT - GAP) / height))
    wide, high = max(LEAST_CELL, round(width * scale)), round(height * scale)
    left = LEFT + (wide + MARGIN if result.source is not None else 0)
    shown = choose(
        mixed(ends, len(kept), len(result.levels) - 1), origin, (WIDEST - left) // (wide + MARGIN)
    )
    page = Page(
        scale, wide, high, {step: line for line, step in enumerate(steps)}, left, place(shown, ends)
    )
    won = CandidateAtStep(result.images[0].uid, len(result.levels) - 1) if result.images else None
    golden = set(chain(won, origin)) if won in shown else set()
    sheet = Image.new("RGB", page.size, "white")
    draw = ImageDraw.Draw(sheet)
    more = hidden_below(origin, shown)
    words = f"{result.spent.seeds} seeds, {round(result.spent.nfe, 2)} denoiser evaluations"
    words += (
        f", {drafts} draft calls among them" if (drafts := result.spent.cost.draft_calls) else ""
    )
    if len(shown) < len(origin):
        words += (
            f"; {sum(look in thumbnails for look in shown)} of {len(thumbnails)} pictures shown"
        )
        words += ", +1 under one: another candidate came of it" if more else ""
    _head(draw, result, page, words)
    _threads(draw, page, shown, golden)
    going = {source for source in origin.values() if source is not None}
    ended = {look for look in origin if look not in going and look.step < len(result.levels) - 1}
    finished = {
        root
        for look in origin
        if look.step == len(result.levels) - 1
        for root in chain(look, origin)
    }
    sizes: dict[CandidateAtStep, tuple[int, int]] = {}
    for look in shown:
        ink = PALE if look in ended or (look.step < 0 and look not in finished) else INK
        if look.step < 0:
            _below(draw, page, look, f"seed {result.particles.seed[look.uid]}", ink, more[look])
            continue
        sizes[look] = _paste(sheet, page, thumbnails[look], page.corner(look), dimmed=look in ended)
        _below(draw, page, look, _score(result.particles, look), ink, more[look])
    for candidate in result.images[::-1]:
        if (last := CandidateAtStep(candidate.uid, len(result.levels) - 1)) in shown:
            (x, y), (wide, high) = page.corner(last), sizes[last]
            width = 3 if last == won else 2
            frame = (x - width, y - width, x + wide + width - 1, y + high + width - 1)
            draw.rectangle(frame, outline=WINNER, width=width)
    if result.source is not None:
        _paste(sheet, page, result.source, (LEFT, HEAD))
        draw.text(
            (LEFT, HEAD + page.high - page.pitch + 2), "source", INK, ImageFont.load_default(12)
        )
    return sheet


def _head(draw: ImageDraw.ImageDraw, result: Result, page: Page, words: str) -> None:
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    wide = page.size[0] - 2 * MARGIN
    draw.text((MARGIN, 6), _shorten(result.prompt, wide, draw, font), INK, font)
    draw.text((MARGIN, 28), _shorten(words, wide, draw, small), "#666666", small)
    names = _looks(result)
    for step, line in page.lines.items():
        label = (
            "finished"
            if step == len(result.levels) - 1
            else f"{names[step]}\nnoise {result.levels[step]:.2f}"
        )
        draw.multiline_text(
            (MARGIN, HEAD + line * page.pitch + page.high // 2 - 16), label, "#333333", small
        )


def _looks(result: Result) -> list[str]:
    """The name of each step's row: "draft" where all looks at the step are such, else the step."""
    looks: list[set[str]] = [set() for _ in result.levels]
    for move in result.trace:
        for step in move["stop"]:
            looks[step].add(move.get("look", ESTIMATE.name).partition(":")[0])
    kinds = [next(iter(names)) if len(names) == 1 else ESTIMATE.name for names in looks]
    return [f"step {k}" if kind == ESTIMATE.name else kind for k, kind in enumerate(kinds)]


def _threads(
    draw: ImageDraw.ImageDraw, page: Page, shown: Origins, golden: set[CandidateAtStep]
) -> None:
    """Draw a line from each look to its continuations; the winner's last, on top."""
    half = page.wide // 2
    for look in sorted(shown, key=lambda look: look in golden):
        source = shown[look]
        if source is None:
            continue
        (x0, y0), (x1, y1) = page.corner(source), page.corner(look)
        bend = y0 + page.pitch - GAP // 2
        points = [(x0 + half, bend), (x1 + half, bend), (x1 + half, y1)]
        if source.step >= 0:
            points.insert(0, (x0 + half, y0 + page.high))
        elif x0 == x1 and page.lines[look.step] == 0:
            continue  # the seed's name stands right above
        draw.line(points, WINNER if look in golden else LINE, 2 if look in golden else 1)


def _paste(
    sheet: Image.Image,
    page: Page,
    picture: Image.Image,
    corner: tuple[int, int],
    *,
    dimmed: bool = False,
) -> tuple[int, int]:
    """Paste a picture, scaled to the page, and return its size there."""
    if page.scale < 1:
        size = (
            max(1, round(picture.width * page.scale)),
            max(1, round(picture.height * page.scale)),
        )
        picture = picture.resize(size, Image.Resampling.BOX)
    if dimmed:
        picture = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.65)
    sheet.paste(picture, corner)
    return picture.size


def _score(p: Particles, look: CandidateAtStep) -> str:
    score = p.selection.values(p.scores[look.uid : look.uid + 1, look.step])[0]
    return f"{score:.3f}" if np.isfinite(score) else "failed"


def _below(
    draw: ImageDraw.ImageDraw, page: Page, look: CandidateAtStep, words: str, ink: str, more: int
) -> None:
    """Write under a picture its score and the number of its hidden continuations; or the name of a
    seed."""
    x, y = page.corner(look)
    font = ImageFont.load_default(12 if page.wide >= 64 else 10)
    kind, _, number = words.rpartition(" ")
    wide = page.wide - (draw.textlength(f" +{more}", font) if more else 0)
    named = f"{kind} " if kind and page.wide >= 64 else ""
    # the last digits of seeds tell them apart
    while kind and number and draw.textlength(words, font) > wide:
        number = number[1:]
        words = f"{named}…{number}"
    texts = [(x, words, ink)]
    if more:
        texts.append((x + page.wide - int(draw.textlength(f"+{more}", font)), f"+{more}", PALE))
    for left, text, colour in texts:
        at = (left, y + page.high + 2)
        # a line of descent may pass behind it
        draw.rectangle(draw.textbbox(at, text, font), "white")
        draw.text(at, text, colour, font)


def _shorten(text: str, width: int, draw: ImageDraw.ImageDraw, font: Font) -> str:
    """The text, cut with an ellipsis to at most `width` pixels."""
    text = text.replace("\n", " ")
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
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
    style += ";image-rendering:pixelated" if small else ""
    return f'<img src="{uri}" alt="{html.escape(text)}" style="{style}">'
