"""How much one search, one caller and all of them together may take."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class SearchLimits:
    """What a stranger may ask of one search. ValueError for limits that are not positive.

    nfe: most evaluations; seconds: until it ends with its best image; steps and side (pixels) of an image; images to
    return; prompt: characters of a text; rewards at once.
    """

    nfe: int = 4000
    seconds: float = 300.0
    steps: int = 100
    side: int = 1024
    images: int = 10
    prompt: int = 4000
    rewards: int = 3

    def __post_init__(self) -> None:
        wrong = [f"{name} = {value}" for name, value in vars(self).items() if not value > 0]
        if wrong:
            raise ValueError(f"limits must be positive, got {', '.join(wrong)}")


@dataclass(frozen=True)
class Limits(SearchLimits):
    """What the service takes: of one search, and of all of them.

    active: searches at a time; queue: requests that wait beside them, the next one being answered with status 429;
    per_key: requests of one caller that wait or run. bytes: of a request, form_bytes: of one with pictures, held: of
    all that are being read; body_seconds: for one to arrive, and for a client to read the next half megabyte of a
    reply. connections: open ones. drain: seconds that searches have to end once the service is told to stop. idle:
    configurations (sizes, steps, rewards ...) that are kept ready unused.
    """

    active: int = 32
    queue: int = 64
    per_key: int = 32
    bytes: int = 2**16
    form_bytes: int = 2**24
    held: int = 2**28
    body_seconds: float = 30.0
    connections: int = 256
    drain: float = 30.0
    idle: int = 4


def line_of(text: str, name: str, most: int) -> str:
    """One line of a stranger's text, without white space around it. ValueError for more than `most` characters, for
    control characters, and for broken text."""
    if len(text) > most:
        raise ValueError(f"the {name} has {len(text)} characters; at most {most} are allowed here")
    line = " ".join(text.split())
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co") for letter in line):
        raise ValueError(f"the {name} holds control characters or broken text; write it again")
    return line
