"""How results look in a notebook: a line of text, the images, the contact sheet."""

from __future__ import annotations

import html

from PIL import Image

from ttsnap.core.outcome import SHOWN
from ttsnap.core.results import Result
from ttsnap.results.pixels import data_uri, still
from ttsnap.results.sheet import contact_sheet

HIGH = 192
"""Pixels of an image's height on the page."""


def page_of(result: Result) -> str:
    """A result as HTML, its pictures in it; of videos, strips of frames."""
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
