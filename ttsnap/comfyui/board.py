"""A search under way: a grid of its candidates' last pictures, and how much of the budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ttsnap.core.grid import Grid
from ttsnap.core.results import Event
from ttsnap.loop.request import SearchSpec
from ttsnap.results.media import still

SIDE, MOST_SIDE, GAP = 768, 256, 4
"""Pixels of a grid's side, of a picture's side at most, and between pictures."""
MOST = 144
"""Candidates in a grid; of more, dropped ones and low scores are left out."""
EVERY = 0.4
"""Seconds between two grids."""
GROUND, FRAME = "#202020", "#3ddc84"


@dataclass
class Board:
    """A listener of one search (Event)."""

    grid: Grid
    spec: SearchSpec
    show: Callable[[float, float, Image.Image | None], None]
    """Takes what is spent, of how much, and a new grid where there is one."""
    pictures: dict[int, Image.Image] = field(default_factory=dict)
    """By candidate."""
    ranks: dict[int, tuple[bool, int, float]] = field(default_factory=dict)
    """Of each candidate, better ones larger: whether it was not dropped, its last step, its score there."""
    spent: int = 0
    """Evaluations."""
    planned: int = 0
    """Evaluations of all moves so far."""
    drawn: float = -math.inf
    """When the last grid was drawn."""
    changed: bool = False
    """Whether there is something to draw since then."""

    def __call__(self, event: Event) -> None:
        if event.kind == "tick":
            self.spent += event.nfe
        elif event.kind == "move":
            self.planned += event.nfe
        elif event.kind == "score" and event.picture is not None:
            (uid,), score = event.uids, float(self.spec.utility(np.array([event.scores]))[0])
            self.pictures[uid] = still(event.picture.small())
            self.ranks[uid] = True, event.step, score if math.isfinite(score) else -math.inf
            self.changed = True
        elif event.kind == "drop":
            self.ranks |= {uid: (False, *self.ranks[uid][1:]) for uid in event.uids if uid in self.ranks}
            self.changed |= bool(self.pictures)
        over, now, cap = event.kind == "end", time.monotonic(), self.spec.budget.on(self.grid)
        due = self.changed and (over or now - self.drawn >= EVERY)
        if due:
            self.drawn, self.changed = now, False
        done, whole = float(self.spent), float(cap.nfe or max(self.planned, 1))
        if cap.nfe is None and cap.seconds is not None:
            done, whole = event.seconds, cap.seconds
        self.show(whole if over else done, whole, drawn(self.pictures, self.ranks) if due else None)


def drawn(pictures: dict[int, Image.Image], ranks: dict[int, tuple[bool, int, float]]) -> Image.Image:
    """The grid, in the order in which candidates began. Dropped ones are dim, and the best has a frame."""
    ranked = sorted(pictures, key=lambda uid: ranks[uid], reverse=True)[:MOST]
    columns = math.ceil(math.sqrt(len(ranked)))
    pitch = min(MOST_SIDE, SIDE // columns)
    sheet = Image.new("RGB", (columns * pitch, math.ceil(len(ranked) / columns) * pitch), GROUND)
    for place, uid in enumerate(sorted(ranked)):
        picture = ImageOps.contain(pictures[uid], (pitch - 2 * GAP, pitch - 2 * GAP))
        if not ranks[uid][0]:
            picture = Image.blend(picture, Image.new("RGB", picture.size, GROUND), 0.65)
        x, y = place % columns * pitch + GAP, place // columns * pitch + GAP
        sheet.paste(picture, (x, y))
        if uid == ranked[0]:
            frame = (x - GAP, y - GAP, x + picture.width + GAP - 1, y + picture.height + GAP - 1)
            ImageDraw.Draw(sheet).rectangle(frame, outline=FRAME, width=GAP)
    return sheet
