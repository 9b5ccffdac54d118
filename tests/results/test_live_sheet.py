"""The contact sheet of a search under way."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ttsnap.core.outcome import Here
from ttsnap.core.results import Event
from ttsnap.core.selection import Selection
from ttsnap.core.utility import weighted
from ttsnap.results import outputs
from ttsnap.results.outputs import LiveSheet
from ttsnap.results.sheet import CELL, HEAD, LIVE, MARGIN, NIGHT

RED, GREEN, BLUE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
LEVELS = (1.0, 0.5, 0.0)


def begun(seeds, clock=None):
    """It draws at every change, unless there is a clock."""
    made = LiveSheet(LEVELS, Selection(weighted([1.0, -1.0])), clock=clock or (lambda: 0.0))
    if clock is None:
        made.clock = lambda: made.next + 1
        made.next = 0.0
    made.take(moved(list(range(seeds)), -1, 1))
    return made


def moved(uids, parent, stop):
    rows = {"start": [stop - 1] * len(uids), "stop": [stop] * len(uids), "seeds": uids}
    move = {"uids": uids, "parents": [parent] * len(uids), **rows, "drop": []}
    return Event("move", move=move)


def scored(uid, colour, *scores, step=1):
    picture = Here(torch.tensor(colour)[:, None, None].expand(3, 8, 8), 0.5)
    return Event("score", uids=(uid,), scores=scores, step=step, picture=picture)


def colours(sheet, columns):
    """In the middle of the first row's pictures."""
    middles = [MARGIN + column * (CELL + MARGIN) + CELL // 2 for column in range(columns)]
    found = [sheet.getpixel((x, HEAD // 2 + CELL // 2)) for x in middles]
    return list(found)


def test_the_best_come_first_and_dropped_ones_are_dim():
    live = begun(3)
    live.take(scored(0, BLUE, 0.5, 0.0))
    live.take(scored(1, RED, 0.9, 0.0))
    sheet = live.take(scored(2, GREEN, 1.0, 0.3))
    assert colours(sheet, 3) == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = live.take(Event("drop", uids=(1, 99)))
    green, blue, red = colours(sheet, 3)
    assert (green, blue) == ((0, 255, 0), (0, 0, 255))
    assert 60 < red[0] < 130
    # further than others, though not scored
    live.take(moved([0], 0, 2))
    sheet = live.take(scored(0, BLUE, float("nan"), 0.0, step=2))
    assert colours(sheet, 1) == [(0, 0, 255)]
    frame = tuple(bytes.fromhex(NIGHT.winner[1:]))
    assert not (np.asarray(sheet) == frame).all(-1).any(), "nothing is finished that has a score"
    live.take(moved([2], 2, 2))
    sheet = live.take(scored(2, GREEN, 0.4, 0.0, step=2))
    assert colours(sheet, 1) == [(0, 255, 0)]
    assert (np.asarray(sheet) == frame).all(-1).any()


def test_a_sheet_is_drawn_now_and_then_and_at_the_end(monkeypatch):
    now = 0.0
    live = begun(800, lambda: now)
    events = (Event("tick"), scored(0, RED, 0.1, 0.0), scored(1, RED, 0.1, 0.0))
    assert [live.take(event) is not None for event in events] == [False, True, False]
    now = 100.0
    assert live.take(Event("tick")) is not None
    ends = (Event("tick"), Event("end"), scored(2, RED, 0.1, 0.0), Event("end"))
    assert [live.take(event) is not None for event in ends] == [False, True, False, True]

    def slow(*_, **__):
        nonlocal now
        now += 0.1
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(outputs, "painted", slow)
    live, drawn = begun(800, lambda: now), 0
    for uid in range(800):
        drawn += live.take(scored(uid, RED, 0.1, 0.0)) is not None
        now += 0.05
    assert drawn <= 1 + 44 / (outputs.REST * 0.1)


def test_many_candidates_fit():
    live = begun(160, lambda: 0.0)
    for uid in range(160):
        live.take(scored(uid, RED if uid < 150 else BLUE, float(uid >= 150), 0.0))
    live.next = 0.0
    sheet = live.take(Event("tick"))
    assert sheet.width == LIVE[0]
    assert sheet.height <= LIVE[1]
    blue = (np.asarray(sheet) == (0, 0, 255)).all(-1).sum()
    assert blue == 10 * (CELL // 2) ** 2, "the best are kept, the smaller"
