"""How seeds that look alike are kept apart (docs/howto/variety.md), as a text says it."""

from __future__ import annotations

import re
from typing import NamedTuple

from ttsnap.core.names import did_you_mean

REPEL = "repel"
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?|\.[0-9]{1,6}")
_RANGES = {
    "size": (1, 99),
    "level": (0, 1),
    "factor": (0, 999),
    "threshold": (0, 1),
    "drop": (0, 1),
}
"""The least and the most of each value, in the order of the text."""


class Repel(NamedTuple):
    """Seeds of one prompt that push each other apart in their first steps
    (ttsnap.sampling.repel)."""

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


def parse(text: str) -> Repel:
    """From "repel", "repel:4" and so on: the values in order, each at its default where left out.

    ValueError for another text."""
    said = str(text)
    name, *numbers = said.split(":")
    if name != REPEL or len(numbers) > len(_RANGES):
        meant = "" if name == REPEL else did_you_mean(name, [REPEL])
        raise ValueError(
            f"variety is {':'.join([REPEL, *_RANGES])}, of which the end may be left out, got"
            f" {said[:40]!r}{meant}"
        )
    for (field, (least, most)), value in zip(_RANGES.items(), numbers, strict=False):
        whole = field != "size" or value.isdecimal()
        if not (whole and _NUMBER.fullmatch(value) and least <= float(value) <= most):
            number = "a whole number" if field == "size" else "a number"
            raise ValueError(
                f"the {field} of variety repel must be {number} from {least} to {most}, "
                f"got {value[:40]!r} in {said[:40]!r}"
            )
    return Repel(*map(int, numbers[:1]), *map(float, numbers[1:]))
