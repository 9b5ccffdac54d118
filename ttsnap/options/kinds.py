"""Values of JSON that anyone may have written: of which kind each must be, in words and as a check."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass

from ttsnap.files.settings import Bounds
from ttsnap.options.option import Option

Check = Callable[[object], bool]
MOST_TEXT, MOST_LIST, MOST_WORD = 10_000, 1000, 200


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words that follow "must be", and whether one is."""

    words: str
    fits: Check


def whole(low: int, high: int, words: str = "") -> Kind:
    """Whole numbers; true and false are none."""
    return Kind(
        words or f"a whole number from {low} to {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def number(low: float = -1000.0, high: float = 1000.0, words: str = "") -> Kind:
    """Finite numbers; true and false are none."""
    return Kind(
        words or f"a number from {low:.0f} to {high:.0f}",
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and low <= v <= high,
    )


def text(most: int = MOST_TEXT) -> Kind:
    """Texts, the empty one among them."""
    return Kind(f"text of at most {most:,} characters", lambda v: isinstance(v, str) and len(v) <= most)


def several(item: Kind, words: str, most: int = MOST_LIST, least: int = 0) -> Kind:
    """Lists of such values."""
    return Kind(words, lambda v: isinstance(v, list) and least <= len(v) <= most and all(map(item.fits, v)))


def either(first: Kind, second: Kind, words: str = "") -> Kind:
    """What is of one of two kinds."""
    return Kind(words or f"{first.words}, or {second.words}", lambda v: first.fits(v) or second.fits(v))


FLAG = Kind("true or false", lambda v: isinstance(v, bool))
NULL = Kind("null", lambda v: v is None)
WORD = Kind(f"text of at most {MOST_WORD} characters", text(MOST_WORD).fits)


def kind_of(option: Option) -> Kind:
    """What a file may give for an option: by its type on the command line, and within its bounds."""
    kinds = set(typing.get_args(option.written)) - {type(None)} or {option.written}
    if kinds == {bool}:
        return FLAG
    if kinds == {int}:
        bounds = option.bounds or Bounds(0)
        return whole(int(bounds.low), int(min(bounds.high, 2**63)))
    if kinds == {float}:
        bounds = option.bounds or Bounds(-1000.0)
        return number(max(bounds.low, -1000.0), min(bounds.high, 1000.0))
    return WORD
