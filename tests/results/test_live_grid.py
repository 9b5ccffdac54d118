"""The picture of a search under way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ttsnap.core.outcome import Here
from ttsnap.core.results import Event
from ttsnap.core.selection import Selection
from ttsnap.core.utility import weighted
from ttsnap.results.live_grid import FRAME, MOST, SIDE, LiveGrid

RED, GREEN, BLUE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@pytest.fixture
def grid() -> LiveGrid:
    """It draws at every change."""
    made = LiveGrid(Selection(weighted([1.0, -1.0])), clock=lambda: made.next + 1)
    made.next = 0.0
    return made


def scored(
    uid: int,
    colour: tuple[float, ...],
    *scores: float,
    step: int = 4,
    size: tuple[int, int] = (8, 8),
) -> Event:
    picture = Here(torch.tensor(colour)[:, None, None].expand(3, *size), 0.5)
    return Event("score", uids=(uid,), scores=scores, step=step, picture=picture)


def cell(sheet: Image.Image, place: int, columns: int) -> list[int]:
    """The colour in the middle of a place, in as many rows as columns."""
    wide, high = sheet.width // columns, sheet.height // columns
    found: Any = sheet.getpixel(
        (place % columns * wide + wide // 2, place // columns * high + high // 2)
    )
    return list(found)


def framed(sheet: Image.Image, columns: int) -> list[int]:
    """The places that have a frame."""
    colour, pitch = tuple(bytes.fromhex(FRAME[1:])), sheet.width // columns
    rows, lines = (np.asarray(sheet) == colour).all(-1).nonzero()
    return sorted(
        {int(y // pitch * columns + x // pitch) for y, x in zip(rows, lines, strict=True)}
    )


def test_pictures_stand_as_they_began_dropped_ones_dim_and_the_best_framed(grid: LiveGrid) -> None:
    grid.take(scored(7, BLUE, 0.5, 0.0))
    grid.take(scored(2, RED, 0.9, 0.0))
    sheet: Any = grid.take(scored(5, GREEN, 1.0, 0.3))
    assert [cell(sheet, place, 2) for place in range(4)] == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [32, 32, 32],
    ]
    assert framed(sheet, 2) == [0]
    sheet = grid.take(Event("drop", uids=(2, 99)))
    assert 60 < cell(sheet, 0, 2)[0] < 130
    assert framed(sheet, 2) == [1]
    # further than others, though not scored
    sheet = grid.take(scored(7, BLUE, float("nan"), 0.0, step=8))
    assert framed(sheet, 2) == [2]


def test_a_grid_is_drawn_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    grid = LiveGrid(Selection(weighted([1.0])), clock=lambda: now)
    assert [
        grid.take(told) is not None
        for told in (Event("tick"), scored(0, RED, 0.1), scored(1, RED, 0.1))
    ] == [
        False,
        True,
        False,
    ]
    now = 1.0
    # at the first end nothing is new
    ends = (Event("tick"), Event("end"), scored(2, RED, 0.1), Event("end"))
    assert [grid.take(event) is not None for event in ends] == [True, False, False, True]

    def slow(self: LiveGrid) -> Image.Image:
        nonlocal now
        now += 0.1
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(LiveGrid, "picture", slow)
    grid, drawn = LiveGrid(Selection(weighted([1.0])), clock=lambda: now), 0
    for uid in range(800):
        drawn += grid.take(scored(uid, RED, 0.1)) is not None
        now += 0.05
    assert 4 <= drawn <= 5  # a hundredth of 40 s


def test_many_candidates_and_wide_pictures_fit(grid: LiveGrid) -> None:
    for uid in range(MOST + 20):
        sheet: Any = grid.take(
            scored(uid, RED if uid < MOST else BLUE, float(uid >= MOST), 0.0, size=(4, 12))
        )
    assert SIDE - 12 <= sheet.width <= SIDE
    assert sheet.height < SIDE / 2
    assert len(grid.pictures) == MOST + 20
    assert cell(sheet, MOST - 1, 12)[2] > 200  # the best are kept, of red ones the first
