"""The contact sheet of a search under way, painted now and then: the last look at each
candidate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ttsnap.core.results import Event
from ttsnap.core.selection import Selection
from ttsnap.results.course import Course
from ttsnap.results.outputs import Recorder
from ttsnap.results.sheet import painted

LEAST_REST = 0.4
REST = 40
"""Seconds between two sheets, and how many times as long as painting one takes."""


@dataclass
class LiveSheet:
    """Paints the events of one search."""

    levels: Sequence[float]
    """(K+1,) noise levels of the steps."""
    selection: Selection
    """What makes one number of a candidate's scores."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """As of Course."""
    clock: Callable[[], float] = time.monotonic
    next: float = -math.inf
    """When the next sheet is due."""
    changed: bool = False
    """Whether there is something new since the last one."""

    def __post_init__(self) -> None:
        self.course = Course(self.levels, self.selection, self.asked)
        self.recorder = Recorder()

    def take(self, event: Event) -> Image.Image | None:
        """Apply an event: a new sheet, where one is due."""
        self.course.listen(event)
        self.recorder(event)
        thumbnails = next(iter(self.recorder.thumbnails.values()), {})
        self.changed |= event.kind in ("score", "drop", "end")
        begin = self.clock()
        due = event.kind == "end" or begin >= self.next
        if not (self.changed and thumbnails and due):
            return None
        sheet = painted(self.course, thumbnails, live=True)
        self.changed, end = False, self.clock()
        self.next = end + max(LEAST_REST, REST * (end - begin))
        return sheet
