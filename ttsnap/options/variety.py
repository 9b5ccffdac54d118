"""How seeds that look alike are kept apart (docs/howto/variety.md), as a text says it."""

from __future__ import annotations

import re
from typing import NamedTuple

from ttsnap.core.names import did_you_mean

REPEL, CADS = "repel", "cads"
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?|\.[0-9]{1,6}")
_RANGES: dict[str, dict[str, tuple[int, int]]] = {
    REPEL: {"size": (1, 99), "level": (0, 1), "factor": (0, 999), "threshold": (0, 1), "drop": (0, 1)},
    CADS: {"scale": (0, 999), "low": (0, 1), "high": (0, 2)},
}
"""The least and the most of each value, in the order of the text."""


class Repel(NamedTuple):
    """Seeds of one prompt that push each other apart in their first steps (ttsnap.sampling.repel)."""

    size: int = 8
    """Seeds of a group."""
    level: float = 0.9
    """The noise level, in [0, 1], down to which steps are coupled."""
    factor: float = 3.0
    """How far a token moves away from the one that is most like it."""
    threshold: float = 0.7
    """The cosine above which it does."""
    drop: float = 0.2
    """The share of tokens that are let off, by chance."""


class Cads(NamedTuple):
    """The encoded prompt of each seed under noise of its own while the image is noise (ttsnap.sampling.cads)."""

    scale: float = 0.1
    """Of the noise, in units of the spread of the encoded prompt."""
    low: float = 0.6
    """The noise level up to which the prompt is left as it is."""
    high: float = 0.9
    """The noise level from which on noise is all that is left of it."""


def parse(text: str) -> Repel | Cads:
    """From "repel", "repel:4", "cads:0.25" and so on: the values in order, each at its default where left out.

    ValueError for another text."""
    said = str(text)
    name, *given = said.split(":")
    if name not in _RANGES or len(given) > len(_RANGES[name]):
        known = " or ".join(":".join([kind, *fields]) for kind, fields in _RANGES.items())
        raise ValueError(f"variety is {known}, of which the end may be left out, got {said[:40]!r}"
                         f"{did_you_mean(name, list(_RANGES)) if name not in _RANGES else ''}")  # fmt: skip
    for (field, (least, most)), value in zip(_RANGES[name].items(), given, strict=False):
        whole = field != "size" or value.isdecimal()
        if not (whole and _NUMBER.fullmatch(value) and least <= float(value) <= most):
            number = "a whole number" if field == "size" else "a number"
            raise ValueError(f"the {field} of variety {name} must be {number} from {least} to {most}, got "
                             f"{value[:40]!r} in {said[:40]!r}")  # fmt: skip
    if name == REPEL:
        return Repel(*map(int, given[:1]), *map(float, given[1:]))
    made = Cads(*map(float, given))
    if made.low >= made.high:
        raise ValueError(f"the low of variety cads must be below its high, got {made.low:g} and {made.high:g} in "
                         f"{said[:40]!r}; as in cads:0.1:0.6:0.9")  # fmt: skip
    return made
