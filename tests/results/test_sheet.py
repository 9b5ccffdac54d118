"""Contact sheets: best candidates first, what is dropped dimmed, the winner framed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.engine.test_drafts import made
from ttsnap import SeedPruning, make_algorithm, search
from ttsnap.core.outcome import thinned
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.scoring import OnDevice, SmallCopies
from ttsnap.results import outputs, sheet
from ttsnap.sampling.kernels import Sde

GREEN = (0x1A, 0x7F, 0x37)
Looks = Callable[..., list[tuple[int, int, int, int]]]


@pytest.fixture
def searched(engine):
    """A search by an algorithm, and its pictures."""

    def run(algorithm, budget="999nfe", **how):
        recorder, live = outputs.Recorder(), engine(prompts=1)
        live = LiveEngine(
            live.denoiser, live.rewards, kernel=Sde(live.denoiser.path, live.denoiser.times)
        )
        (result,) = search(["a"], algorithm, live, budget, on_event=recorder, **how)
        return result, recorder

    return run


def pruned(seeds=6, step=2):
    return SeedPruning(seeds, (0.5,), steps=(step,))


@pytest.fixture
def looks(monkeypatch):
    """The looks on a result's sheet: candidate, step, and the corner of the picture."""
    page = []
    look = sheet.Page.look

    def kept(painted, cell):
        page.append((*cell.look, *painted.corner(cell)))
        look(painted, cell)

    def looks(result, thumbnails):
        page.clear()
        sheet.contact_sheet(result, thumbnails)
        return [*page]

    monkeypatch.setattr(sheet.Page, "look", kept)
    return looks


def test_pruned_candidates_are_dimmed_and_the_winner_is_framed(searched):
    result, recorder = searched(
        SeedPruning(6, (0.5, 0.5), steps=(2, 5)), selection=Selection(keep=2)
    )
    picture = recorder.sheet(result)
    cell, pitch = sheet.CELL, sheet.CELL + sheet.TEXT_HEIGHT + sheet.ROW_GAP
    assert picture.height == sheet.HEAD + 3 * pitch + sheet.MARGIN
    assert picture.width == sheet.LEFT + 6 * (cell + sheet.MARGIN) + sheet.MARGIN
    p, pixels = result.particles, np.asarray(picture).astype(float)
    assert len(recorder.thumbnails[0]) == 6 + 3 + 2
    best_first = sorted(
        range(6), key=lambda u: (u != result.best.uid, -p.scored[u], -p.value([u])[0])
    )
    for column, uid in enumerate(best_first):
        for line, step in enumerate((2, 5, 8)):
            at = (sheet.HEAD + line * pitch + 40, sheet.LEFT + column * (cell + sheet.MARGIN) + 40)
            color = np.full(3, 255.0)
            if step <= p.scored[uid]:
                color = np.asarray(recorder.thumbnails[0][uid, step])[40, 40].astype(float)
            dropped = step == p.scored[uid] < 8
            np.testing.assert_allclose(
                pixels[at], color * 0.35 + 255 * 0.65 if dropped else color, atol=1.5
            )
    assert tuple(pixels[sheet.HEAD + 2 * pitch - 2, sheet.LEFT + 40]) == GREEN


@pytest.fixture
def written(monkeypatch):
    """The words that are drawn, and how wide they are."""
    words = []

    def telling(draw):
        def text(
            self,
            at,
            told,
            fill=None,
            font=None,
            *more,
            **others,
        ):
            words.append((told, max(self.textlength(line, font) for line in told.split("\n"))))
            draw(self, at, told, fill, font, *more, **others)

        return text

    for name in ("text", "multiline_text"):
        monkeypatch.setattr(ImageDraw.ImageDraw, name, telling(getattr(ImageDraw.ImageDraw, name)))
    return words


def test_words_count_the_seeds_that_started_and_tell_long_ones_and_drafts_apart(searched, written):
    first = 2**64 - 100
    result, recorder = searched(pruned(12, 1), seed=first)
    recorder.sheet(result)
    named = {words: wide for words, wide in written if words.startswith("…")}
    assert len(named) == 12
    assert max(named.values()) <= sheet.CELL, "within their columns"
    assert {int(words[-2:]) for words in named} == {(first + i) % 100 for i in range(12)}
    written.clear()
    never = result.particles.step * 0
    particles = replace(result.particles, step=never, cached=never > 0)
    told = replace(result, spent=replace(result.spent, seeds=0), particles=particles)
    assert sheet.contact_sheet(told, {}).width >= 480
    assert any(line.startswith("0 seeds, ") for line, _ in written), "listed, never evaluated"
    written.clear()
    recorder = outputs.Recorder()
    (drafted,) = search(["a"], SeedPruning(12, keep=(0.5,), steps=(3,)), made(), on_event=recorder)
    recorder.sheet(drafted)
    rows = {
        words.partition("\n")[0]: 0
        for words, _ in written
        if words == "finished" or "\nnoise" in words
    }
    assert [*rows] == ["draft", "step 3", "finished"]


def test_kept_images_are_framed_and_the_source_stands_left_of_the_first_row(searched):
    result, recorder = searched(pruned(), selection=Selection(keep=3))
    plain, source = recorder.sheet(result), Image.new("RGB", (sheet.CELL, sheet.CELL), "orange")
    shown, pitch = recorder.sheet(replace(result, source=source)), sheet.CELL + sheet.MARGIN
    assert shown.width == plain.width + pitch
    for picture, left in ((plain, sheet.LEFT), (shown, sheet.LEFT + pitch)):
        y = sheet.HEAD + sheet.CELL + sheet.TEXT_HEIGHT + sheet.ROW_GAP - 1
        assert (
            sum(picture.getpixel((x, y)) == GREEN for x in range(left + 40, picture.width, pitch))
            == 3
        )
    assert shown.getpixel((sheet.LEFT + 40, sheet.HEAD + 40)) == (255, 165, 0)


@pytest.mark.parametrize(("width", "height", "column"), [(96, 32, 96), (32, 96, 48)])
def test_rows_columns_and_frames_are_as_large_as_pictures(searched, looks, width, height, column):
    result, recorder = searched(pruned())
    shaped = {
        look: picture.crop((0, 0, width, height))
        for look, picture in recorder.thumbnails[0].items()
    }
    shown = sheet.contact_sheet(result, shaped)
    assert (
        shown.height == sheet.HEAD + 2 * (height + sheet.TEXT_HEIGHT + sheet.ROW_GAP) + sheet.MARGIN
    )
    told = looks(result, shaped)
    assert {x for *_, x, _ in told} == {sheet.LEFT + i * (column + sheet.MARGIN) for i in range(6)}
    won = (result.best.uid, 8)
    x, y = next((x, y) for uid, step, x, y in told if (uid, step) == won)
    assert np.array_equal(
        np.asarray(shown.crop((x, y, x + width, y + height))), np.asarray(shaped[won])
    )
    low = {
        look: picture.crop((0, 0, width, 16)) if look[1] == 8 else picture
        for look, picture in shaped.items()
    }
    top, framed = (
        sheet.HEAD + height + sheet.TEXT_HEIGHT + sheet.ROW_GAP,
        sheet.contact_sheet(result, low),
    )
    green = [
        y
        for y in range(top - 3, framed.height)
        if framed.getpixel((sheet.LEFT + width // 2, y)) == GREEN
    ]
    assert green == [*range(top - 3, top), *range(top + 16, top + 19)]


def test_of_many_seeds_all_are_shown_in_bands_smaller_if_need_be(searched, looks):
    for seeds, pitch in ((60, 96), (130, 72), (400, 48)):
        result, recorder = searched(pruned(seeds), f"{4 * seeds}nfe")
        told = looks(result, recorder.thumbnails[0])
        picture = recorder.sheet(result)
        assert picture.width <= sheet.WIDEST
        assert picture.height <= sheet.TALLEST
        columns = sorted({x for *_, x, _ in told})
        assert columns[1] - columns[0] == pitch + sheet.MARGIN
        shown = {uid for uid, *_ in told}
        assert len(shown) == seeds or seeds == 400
        p = result.particles
        best_first = sorted(range(seeds), key=lambda u: (-p.scored[u], -p.value([u])[0]))
        assert shown == set(best_first[: len(shown)])


@pytest.mark.parametrize("name", ["rbf", "svdd"])
def test_a_sheet_of_many_tries_is_mostly_pictures(name, searched, looks):
    result, recorder = searched(make_algorithm(name), "200nfe")
    told = looks(result, recorder.thumbnails[0])
    columns, rows = {x for *_, x, _ in told}, {y for *_, y in told}
    assert len(told) / (len(columns) * len(rows)) > 0.3
    whole = len(recorder.thumbnails[0])
    assert len(told) == whole if name == "svdd" else len(told) > 0.4 * whole


def test_small_copies_of_the_estimates_of_a_batch_leave_the_device_together(
    monkeypatch,
):
    images = [torch.rand(3, 400, 600), None, torch.rand(3, 400, 600), torch.rand(2, 3, 8, 8)]
    shapes, cpu = list[Any](), torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: (shapes.append(len(x)), cpu(x))[1])
    copies = SmallCopies(images, [0, 2, 3])
    for row in (2, 0, 3):
        image = images[row]
        assert image is not None
        assert torch.equal(OnDevice(image, 0.5, copies, row).small(), thinned(image))
    assert shapes == [2, 1]
