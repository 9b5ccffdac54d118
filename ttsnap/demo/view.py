"""One search on the page: its course, its pictures, what a visitor is told, and does."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ttsnap.core.results import Led
from ttsnap.loop.budget import Budget
from ttsnap.results.course import Course


@dataclass(eq=False)
class Hand:
    """A visitor's hand on a search."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Ends it."""
    led: Led | None = None
    """The search as it runs; None before, and of a comparison."""
    asked: dict[int, str] = field(default_factory=dict)
    """What was last asked of each candidate."""


@dataclass
class View:
    """One search on the page. Its note and what it kept come at its end."""

    title: str
    course: Course
    allowed: Budget
    seconds: float
    """Time that the search may take."""
    pictures: dict[tuple[int, int], str] = field(default_factory=dict)
    """What was scored, by candidate and step, as data URIs."""
    best: str = ""
    """The best finished image, large."""
    note: str = ""
    """Warnings."""
    kept: tuple[tuple[str, str], ...] = ()
    """The other kept images, best first: a data URI and a caption each."""
    source: str = ""
    """The picture that the search changes, as a data URI."""
    aspect: float = 1.0
    """Width of the images by their height."""
    hand: Hand | None = None
    """The visitor's; None where nobody leads the search."""
