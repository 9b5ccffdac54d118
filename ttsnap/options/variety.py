"""How seeds that look alike are kept apart (docs/howto/variety.md), as a text says it."""

from __future__ import annotations

import re
from typing import NamedTuple

REPEL = "repel"
_NUMBER = r"(\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})"
_REPEL = re.compile(rf"repel(?::([1-9]\d?)(?::{_NUMBER}(?::{_NUMBER}(?::{_NUMBER}(?::{_NUMBER})?)?)?)?)?")


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

    @classmethod
    def parse(cls, text: str) -> Repel:
        """From "repel", "repel:4" and so on: size, level, factor, threshold, drop, each at its default where left out.

        ValueError for another text."""
        match = _REPEL.fullmatch(str(text))
        values = [] if match is None else [float(each) for each in match.groups() if each is not None]
        made = cls(*([int(values[0])] if values else []), *values[1:])
        if match is None or max(made.level, made.threshold, made.drop) > 1:
            raise ValueError(
                "variety is repel, with the size of groups, the noise level down to which they are coupled, factor, "
                f"threshold and drop, as in repel:8:0.9:3:0.7:0.2, got {str(text)[:40]!r}"
            )
        return made
