"""The language of signs: what a prompt asks for, its canonical form, and a forgiving parser.

A sign is a plate of one colour with a word of three to eight capital letters, in a colour that
stands out::

    a red sign that says "HELLO"
    a yellow sign that says "EXIT" in black
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttsnap.core.names import nearest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = tuple((Path(__file__).parent / "words.txt").read_text("ascii").split())
"""Words of three to eight letters, none of which training saw."""
DARK = ("red", "green", "blue", "black")
LIGHT = ("yellow", "white")
COLORS = (*DARK, *LIGHT)
"""Of plates and letters; one of the two is dark and the other light."""
RGB = {
    "red": (200, 30, 35),
    "green": (15, 120, 60),
    "blue": (30, 70, 190),
    "black": (20, 20, 24),
    "yellow": (250, 210, 40),
    "white": (244, 244, 240),
}
"""Levels of the colours, 0 to 255."""
MIN_LETTERS = 3
MAX_LETTERS = 8
LENGTHS = {"short": (3, 4), "medium": (5, 6), "long": (7, 8)}
"""Kinds of word by their letters, of pairs of letters that training saw side by side."""
PAIRS = "pairs"
"""Kind of word in which two letters stand side by side that training never saw so."""
KINDS = (*LENGTHS, PAIRS)
HARD_KINDS = ("long", PAIRS)
FORM = 'a red sign that says "HELLO", or a red sign that says "HELLO" in white'
_TEXT = re.compile(
    r'an?\s+(\S+)\s+sign\s+that\s+says\s+["“”\'‘’]([^"“”\'‘’]*)["“”\'‘’](?:\s+in\s+(\S+))?',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sign:
    """What a prompt asks for.

    Args:
        word: three to eight capital letters.
        ground: colour of the plate.
        ink: colour of the letters, or None where the prompt does not say.
    """

    word: str
    ground: str
    ink: str | None = None

    def __post_init__(self) -> None:
        strange = sorted(set(self.word) - set(LETTERS))
        if strange:
            raise ValueError(
                f"{self.word!r:.80} has {', '.join(map(repr, strange))}; the model writes A to Z"
                " only"
            )
        if not MIN_LETTERS <= len(self.word) <= MAX_LETTERS:
            raise ValueError(
                f"{self.word!r:.80} has {len(self.word)} letters; a sign has {MIN_LETTERS} to"
                f" {MAX_LETTERS}"
            )
        for color in (self.ground, *([] if self.ink is None else [self.ink])):
            if color not in COLORS:
                near = nearest(color, COLORS)
                meant = "" if near is None else f"; did you mean {near}?"
                raise ValueError(f"unknown colour {color!r:.80}{meant} Known: {', '.join(COLORS)}")
        if self.ink is not None and self.ink not in inks(self.ground):
            raise ValueError(
                f"{self.ink} letters do not stand out on {self.ground}; choose"
                f" {' or '.join(inks(self.ground))}"
            )

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if not pairs(self.word).isdisjoint(UNSEEN_PAIRS):
            return PAIRS
        return next(kind for kind, lengths in LENGTHS.items() if len(self.word) in lengths)


def inks(ground: str) -> tuple[str, ...]:
    """Colours of letters that stand out on a plate."""
    return LIGHT if ground in DARK else DARK


def pairs(word: str) -> set[str]:
    """The letters of a word that stand side by side."""
    return {word[i : i + 2] for i in range(len(word) - 1)}


UNSEEN_PAIRS = frozenset(
    a + b for a in LETTERS for b in LETTERS if zlib.crc32(f"{a}{b}".encode()) % 12 == 7
)
"""Letters that no word in training has side by side in this order (one pair in twelve, by its
CRC-32)."""


def caption(sign: Sign) -> str:
    """The canonical prompt, which the model was trained on."""
    text = f'a {sign.ground} sign that says "{sign.word}"'
    return text if sign.ink is None else f"{text} in {sign.ink}"


def parse(text: str) -> Sign:
    """What a prompt asks for. Forgives case, extra spaces, other quotes, and one final full stop.

    Raises:
        ValueError: for text of another form (which is shown), and for a word or colour that the
            model does not know.
    """
    found = _TEXT.fullmatch(text.strip().removesuffix("."))
    if found is None:
        raise ValueError(
            f"cannot read {text!r:.200}. The model signs takes prompts of the form {FORM}."
        )
    ground, word, ink = found.groups()
    return Sign(word.upper(), ground.lower(), None if ink is None else ink.lower())


def sample_prompts(n: int, seed: int, kinds: Sequence[str] = KINDS) -> list[str]:
    """`n` canonical prompts of distinct words of `WORDS`, balanced over `kinds`, the same for the
    same arguments.

    Training saw none of these words. ValueError: if a kind is unknown or has too few words.
    """
    if n < 0 or not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"need n >= 0 and kinds of {', '.join(KINDS)}, got {n=}, {kinds=}")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(WORDS).tolist()
    of_kind = {
        kind: [word for word in shuffled if Sign(word, "red").kind == kind] for kind in kinds
    }
    found = []
    for i in range(n):
        left = of_kind[kinds[i % len(kinds)]]
        if not left:
            raise ValueError(f"there are not enough words of {kinds[i % len(kinds)]!r} for {n=}")
        ground = COLORS[rng.integers(len(COLORS))]
        ink = None if rng.random() < 0.5 else str(rng.choice(inks(ground)))
        found.append(caption(Sign(left.pop(), ground, ink)))
    return found
