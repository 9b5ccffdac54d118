"""Pictures of signs, and words to write on them. Needs Pillow and the free fonts that matplotlib
ships."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ttsnap.signs.grammar import (
    COLORS,
    LETTERS,
    MAX_LETTERS,
    MIN_LETTERS,
    RGB,
    UNSEEN_PAIRS,
    WORDS,
    Sign,
    inks,
    pairs,
)

HEIGHT, WIDTH = 32, 96
NUM_LABELS = 1 + len(LETTERS)
"""Labels of the dense maps: 0 is the plate, 1 + the place in the alphabet a letter."""
FONTS = (
    "DejaVuSans-Bold",
    "DejaVuSans",
    "DejaVuSansMono-Bold",
    "DejaVuSerif-Bold",
    "STIXGeneralBol",
    "cmss10",
)
"""DejaVu (Bitstream Vera licence), STIX (SIL Open Font Licence), Computer Modern (BaKoMa)."""
_FREQUENCIES = (
    82,
    15,
    28,
    43,
    127,
    22,
    20,
    61,
    70,
    2,
    8,
    40,
    24,
    67,
    75,
    19,
    1,
    60,
    63,
    91,
    28,
    10,
    24,
    2,
    20,
    1,
)
_SCALE = 4
"""Letters are drawn so many times larger, then averaged."""
_EVEN = 0.5
"""How far the room of each letter is the font's mean: 0 sets type, 1 a typewriter."""
_TALLEST, _LEAST = 21.0, 0.85
"""Capitals' height in pixels at most, and the least share of that, or of the room, that a word
fills."""
_OFF_CENTRE = (6.0, 3.0)
"""Pixels to the right or left, and up or down, by which a word may be off the centre."""


def random_words(n: int, rng: np.random.Generator) -> list[str]:
    """Random letters, half of them as frequent as in English, without words of `WORDS` and without
    `UNSEEN_PAIRS`."""
    english = np.array(_FREQUENCIES) / sum(_FREQUENCIES)
    share = (english + 1 / len(LETTERS)) / 2
    kept_out = set(WORDS)
    words: list[str] = []
    while len(words) < n:
        length = int(rng.integers(MIN_LETTERS, MAX_LETTERS + 1))
        word = "".join(np.array(list(LETTERS))[rng.choice(len(LETTERS), length, p=share)])
        if word not in kept_out and pairs(word).isdisjoint(UNSEEN_PAIRS):
            words.append(word)
    return words


def training_signs(n: int, rng: np.random.Generator) -> list[Sign]:
    """Random words in random colours; half of the prompts name the letters' colour."""
    grounds = [COLORS[i] for i in rng.integers(len(COLORS), size=n)]
    named = rng.random(n) < 0.5
    return [
        Sign(word, ground, str(rng.choice(inks(ground))) if name else None)
        for word, ground, name in zip(random_words(n, rng), grounds, named, strict=True)
    ]


@cache
def _glyphs(name: str) -> tuple[ImageFont.FreeTypeFont, float, dict[str, tuple[float, float]]]:
    """A font with capitals of a hundred pixels: the font, its mean width, and by letter the left
    edge and width."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    probe = ImageFont.truetype(path, 100)
    _, top, _, bottom = probe.getbbox("H", anchor="ls")
    font = ImageFont.truetype(path, 100 * 100 / (bottom - top))
    boxes = {letter: font.getbbox(letter, anchor="ls") for letter in LETTERS}
    sizes = {letter: (box[0], box[2] - box[0]) for letter, box in boxes.items()}
    return font, sum(width for _, width in sizes.values()) / len(LETTERS), sizes


@cache
def _font(name: str, height: int) -> ImageFont.FreeTypeFont:
    """A font with capitals of so many pixels."""
    font, _, _ = _glyphs(name)
    return font.font_variant(size=font.size * height / 100)


def layout(
    word: str, name: str, rng: np.random.Generator
) -> tuple[float, float, list[tuple[float, float]]]:
    """Height of capitals, their base line, and of each letter the left edge and the width, in
    pixels."""
    _, mean, sizes = _glyphs(name)
    room = np.array([(1 - _EVEN) * sizes[letter][1] + _EVEN * mean for letter in word])
    # in percent of the capitals' height
    room = np.maximum(room, [sizes[letter][1] for letter in word]) + 16
    edge = 3.0
    fitting = 100 * (WIDTH - 2 * edge) / room.sum()
    height = min(_TALLEST, fitting) * (_LEAST + (1 - _LEAST) * rng.random())
    spare = (WIDTH / 2 - edge - room.sum() * height / 200, HEIGHT / 2 - edge - height / 2)
    right, down = (
        (2 * rng.random() - 1) * min(most, room)
        for most, room in zip(_OFF_CENTRE, spare, strict=True)
    )
    left = (WIDTH - room.sum() * height / 100) / 2 + right
    base = (HEIGHT + height) / 2 + down
    starts = left + np.concatenate([[0.0], room.cumsum()[:-1]]) * height / 100
    widths = np.array([sizes[letter][1] for letter in word]) * height / 100
    starts = starts + (room * height / 100 - widths) / 2
    return float(height), float(base), list(zip(starts.tolist(), widths.tolist(), strict=True))


def render(
    signs: Sequence[Sign], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 3, 32, 96) uint8, and label maps (N, 32, 96) (see `NUM_LABELS`)."""
    images = np.empty((len(signs), 3, HEIGHT, WIDTH), np.uint8)
    maps = np.zeros((len(signs), HEIGHT, WIDTH), np.uint8)
    for i, sign in enumerate(signs):
        name = FONTS[rng.integers(len(FONTS))]
        height, base, boxes = layout(sign.word, name, rng)
        _, _, sizes = _glyphs(name)
        font = _font(name, round(height * _SCALE))
        mask = Image.new("L", (WIDTH * _SCALE, HEIGHT * _SCALE), 0)
        draw = ImageDraw.Draw(mask)
        for letter, (left, width) in zip(sign.word, boxes, strict=True):
            bearing = sizes[letter][0] * height / 100
            draw.text(
                ((left - bearing) * _SCALE, base * _SCALE), letter, fill=255, font=font, anchor="ls"
            )
            rows = slice(round(base - height), round(base))
            maps[i, rows, round(left) : round(left + width)] = 1 + LETTERS.index(letter)
        cover = (
            np.asarray(mask, np.float32).reshape(HEIGHT, _SCALE, WIDTH, _SCALE).mean((1, 3)) / 255
        )
        ink = sign.ink or str(rng.choice(inks(sign.ground)))
        ground, letters = (np.array(RGB[c], np.float32)[:, None, None] for c in (sign.ground, ink))
        images[i] = np.rint(ground + cover * (letters - ground))
    return images, maps
