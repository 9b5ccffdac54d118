"""A search under way as one picture: what was last seen of each candidate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ttsnap.core.results import Event
from ttsnap.core.selection import Selection
from ttsnap.results.media import still

SIDE, MOST_SIDE, GAP = 768, 256, 5
"""Pixels of a grid's side, of a picture's side at most, and around a picture."""
MOST = 144
"""Candidates in a grid; of more, dropped ones and low scores are left out."""
EVERY, REST = 0.4, 100
"""Seconds between two grids, and how many times as long as drawing one takes."""
GROUND, FRAME, DIM = "#202020", "#3ddc84", 0.65


@dataclass
class LiveGrid:
    """Draws the events of one search."""

    selection: Selection
    """What makes one number of a candidate's scores."""
    clock: Callable[[], float] = time.monotonic
    pictures: dict[int, Image.Image] = field(default_factory=dict)
    """By candidate."""
    ranks: dict[int, tuple[bool, int, float]] = field(default_factory=dict)
    """Of each candidate, larger for better ones: whether it was not dropped, its last step, its
    score there."""
    next: float = -math.inf
    """When the next grid is due."""
    changed: bool = False
    """Whether there is something new since the last one."""

    def take(self, event: Event) -> Image.Image | None:
        """Apply an event: a new grid, where one is due."""
        if event.kind == "score" and event.picture is not None:
            (uid,), score = event.uids, float(self.selection.values(np.array([event.scores]))[0])
            self.pictures[uid], self.changed = still(event.picture.small()), True
            self.ranks[uid] = True, event.step, score if math.isfinite(score) else -math.inf
        elif event.kind == "drop" and (dropped := self.ranks.keys() & set(event.uids)):
            self.ranks |= {uid: (False, *self.ranks[uid][1:]) for uid in dropped}
            self.changed = True
        begin = self.clock()
        if not self.changed or (event.kind != "end" and begin < self.next):
            return None
        sheet, self.changed = self.picture(), False
        end = self.clock()
        self.next = end + max(EVERY, REST * (end - begin))
        return sheet

    def picture(self) -> Image.Image:
        """The grid, in the order in which candidates began. Dropped ones are dim, and the best has
        a frame."""
        ranked = sorted(self.ranks, key=lambda uid: self.ranks[uid], reverse=True)[:MOST]
        columns = math.ceil(math.sqrt(len(ranked)))
        side = min(MOST_SIDE, SIDE // columns) - 2 * GAP
        wide, high = (
            length + 2 * GAP
            for length in ImageOps.contain(self.pictures[ranked[0]], (side, side)).size
        )
        sheet = Image.new("RGB", (columns * wide, math.ceil(len(ranked) / columns) * high), GROUND)
        for place, uid in enumerate(sorted(ranked)):
            picture = ImageOps.contain(self.pictures[uid], (wide - 2 * GAP, high - 2 * GAP))
            if not self.ranks[uid][0]:
                picture = Image.blend(picture, Image.new("RGB", picture.size, GROUND), DIM)
            x, y = place % columns * wide + GAP, place // columns * high + GAP
            sheet.paste(picture, (x, y))
            if uid == ranked[0]:
                frame = (
                    x - GAP,
                    y - GAP,
                    x + picture.width + GAP - 1,
                    y + picture.height + GAP - 1,
                )
                ImageDraw.Draw(sheet).rectangle(frame, outline=FRAME, width=GAP - 1)
        return sheet
