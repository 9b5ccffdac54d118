"""One search on the page: its course, its pictures, and what a visitor is told and asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ttsnap.algorithms.by_hand import UserCommand
from ttsnap.loop.budget import Budget
from ttsnap.results.course import Course


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
    wishes: Sequence[UserCommand] | None = None
    """Those of the visitor so far; None where the search takes none."""

    @property
    def led(self) -> bool:
        """Whether the visitor may still finish and drop candidates."""
        return self.wishes is not None and not self.course.over

    def asked(self, uid: int) -> str:
        """What the visitor last asked of a candidate; "" where nothing."""
        return next((wish.verb for wish in reversed(self.wishes or ()) if wish.uid == uid), "")
