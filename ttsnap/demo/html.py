"""Parts of the page: pictures, figures, scores and lines of text. What the page shows is text of
these."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttsnap.results.course import Score
from ttsnap.results.media import data_uri, still

TINY = 64
SMALL = 128
LARGE = 512
FULL = 1024
"""Most pixels a side: of squares as large as sharp pictures, on the board, of the best so far, of
the winner."""
RIGHT = "right"
"""The one question that is asked of finished images here, where somebody can tell."""


def thumbnail_uri(image: Any, most: int = SMALL) -> str:
    """(3, H, W) in [0, 1] -> a data URI of at most `most` pixels a side. Videos (T, 3, H, W) show a
    few frames."""
    return shrunk_uri(np.asarray(still(image)), most)


def shrunk_uri(pixels: NDArray[np.uint8], most: int) -> str:
    """(H, W, 3) -> a data URI: a WebP, or a PNG of a tiny picture, by which the style sheet keeps
    its pixels sharp."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    if picture.width * picture.height <= TINY**2:
        return data_uri(picture, "png")
    return data_uri(picture, "webp", quality=80, method=2)


def picture(uri: str, alt: str) -> str:
    """A picture that opens large where it is clicked."""
    return f'<img src="{uri}" alt="{escape(alt)}" tabindex="0" decoding="sync">'


def figure(inside: str, caption: str, kind: str = "") -> str:
    """A figure with its caption, both of them HTML."""
    kinds = f' class="{kind}"' if kind else ""
    return f"<figure{kinds}>{inside}<figcaption>{caption}</figcaption></figure>"


def line(kind: str, text: str) -> str:
    """A line of text of the class `tt-<kind>`, escaped."""
    return f'<div class="tt-{kind}">{escape(text)}</div>'


def shaped(aspect: float) -> str:
    """The attribute of a stage whose pictures have this width for each height."""
    return "" if aspect == 1 else f' style="--aspect:{aspect:.4g}"'


def verdict(right: bool | None) -> str:
    """A mark for an image that is right or wrong; nothing where nobody can tell."""
    if right is None:
        return ""
    return f' <em class="{"tt-right" if right else "tt-wrong"}">{"✓" if right else "✗"}</em>'


def answers_in_words(score: Score) -> str:
    """The answers about an image in words that follow its score: ", right, not two dogs"."""
    return "".join(f", {'' if met else 'not '}{name}" for name, met in score.answers.items())


def token(item: str) -> str:
    """An item of a checklist as one word, by which a click finds the images that have it
    (page.js)."""
    return "_".join(item.split())


def short(score: float) -> str:
    """Three significant digits, without the zero before the point."""
    text = f"{score:.3f}" if abs(score) < 1 else f"{score:.3g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
