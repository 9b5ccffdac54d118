"""Contact sheets: every look under the one that it came from, what is dropped dimmed, the winner framed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.engine.test_drafts import made
from ttsnap import SeedPruning, make_algorithm, search
from ttsnap.core.results import Result
from ttsnap.engine.live import LiveEngine
from ttsnap.results import outputs, sheet
from ttsnap.results.lineage import (
    FILLED,
    NARROW,
    SIBLINGS,
    CandidateAtStep,
    Origins,
    chain,
    choose,
    hidden_below,
    most_wanted,
    origins,
    place,
)
from ttsnap.sampling.kernels import Sde

BRANCHING = ["svdd", "code", "smc", "rbf", "best-first", "search-over-paths", "zero-order", "depth-first", "nested"]


@pytest.fixture
def searched(engine: Callable[..., Any]) -> Callable[..., tuple[Result, outputs.Recorder]]:
    def run(algorithm: Any) -> tuple[Result, outputs.Recorder]:
        recorder, live = outputs.Recorder(), engine(prompts=1)
        live = LiveEngine(live.denoiser, live.rewards, kernel=Sde(live.denoiser.path, live.denoiser.times))
        (result,) = search(["a"], algorithm, live, "200nfe", on_event=recorder)
        return result, recorder

    return run


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, int, int, int]]]:
    """The looks on a result's sheet: candidate, step, and the corner of the picture."""
    pages: list[list[tuple[int, int, int, int]]] = []
    threads = sheet._threads

    def kept(draw: Any, page: sheet.Page, shown: Origins, golden: Any) -> None:
        pages.append([(*look, *page.corner(look)) for look in shown if look.step >= 0])
        threads(draw, page, shown, golden)

    def looks(result: Result, thumbnails: Any) -> list[tuple[int, int, int, int]]:
        sheet.contact_sheet(result, thumbnails)
        return pages[-1]

    monkeypatch.setattr(sheet, "_threads", kept)
    return looks


@pytest.mark.parametrize("name", BRANCHING)
def test_lines_lead_from_every_look_to_what_it_came_from(name: str, searched: Any) -> None:
    result, recorder = searched(make_algorithm(name))
    looks = recorder.thumbnails[0]
    origin = origins(result.trace, looks)
    p = result.particles
    assert {look for look in origin if look.step >= 0} == set(looks)
    for look, source in origin.items():
        root = look.uid
        while p.parent[root] >= 0:
            root = int(p.parent[root])
        assert chain(look, origin)[-1] == CandidateAtStep(root, -1), "every line begins at the seed"
        if source is None or source.step < 0:
            continue
        assert source.step < look.step
        assert source.uid in {look.uid, *ancestors(look.uid, p.parent)}
    kept = [candidate.uid for candidate in result.images]
    ends = most_wanted(origin, kept, lambda uid: result.particles.value([uid])[0])
    assert ends[0] == CandidateAtStep(result.best.uid, len(result.levels) - 1)
    for most in (1, 4, 16):
        shown = choose(ends, origin, most)
        columns = place(shown, ends)
        assert chain(ends[0], origin)[0] in shown
        assert max(columns.values()) < most
        assert no_overlap(shown, columns)
        assert all(source is None or source in shown for source in shown.values()), "nothing hangs in the air"
        assert len({columns[look] for look in chain(ends[0], shown)}) == 1, "the winner's line goes straight down"
        hidden = {uid for uid, _ in looks} - {look.uid for look in shown if look.step >= 0}
        told = [uid for uid in hidden if chain(last_of(uid, origin), origin)[-1] in shown]
        assert sum(hidden_below(origin, shown).values()) == len(told), "all but whole families are counted"
    picture = recorder.sheet(result)
    assert picture.width <= sheet.WIDEST + sheet.MARGIN
    assert picture.height <= sheet.TALLEST + 2 * sheet.HEAD


def ancestors(uid: int, parent: Any) -> set[int]:
    found = set()
    while parent[uid] >= 0:
        uid = int(parent[uid])
        found.add(uid)
    return found


def last_of(uid: int, origin: Origins) -> CandidateAtStep:
    return max(look for look in origin if look.uid == uid)


def no_overlap(shown: Origins, columns: dict[CandidateAtStep, int]) -> bool:
    """Whether no look lies on another, or on a line to another."""
    lines = {step: i for i, step in enumerate(sorted({look.step for look in shown}))}
    taken = set()
    for look, column in columns.items():
        source = shown[look]
        rows = range(lines[look.step] if source is None else lines[source.step] + 1, lines[look.step] + 1)
        for row in rows:
            if (row, column) in taken:
                return False
            taken.add((row, column))
    return True


def test_what_is_shared_is_drawn_once_and_what_is_hidden_is_counted() -> None:
    """Seed 0 is looked at, branches into 1 and 2, and 1 into 3: 3 looks share one ancestor."""
    a, b, c, d = CandidateAtStep(0, 2), CandidateAtStep(1, 4), CandidateAtStep(2, 4), CandidateAtStep(3, 6)
    origin: Origins = {CandidateAtStep(0, -1): None, a: CandidateAtStep(0, -1), b: a, c: a, d: b}
    assert place(origin, [d, c]) == {CandidateAtStep(0, -1): 0, a: 0, b: 0, d: 0, c: 1}
    assert place(origin, [c, d]) == {CandidateAtStep(0, -1): 0, a: 0, c: 0, b: 1, d: 1}
    shown = choose([d, c, b, a], origin, 1)
    assert list(shown) == [CandidateAtStep(0, -1), a, b, d]
    assert hidden_below(origin, shown) == {a: 1}


def test_pruned_candidates_are_dimmed_and_the_winner_is_framed(engine: Callable[..., Any]) -> None:
    recorder = outputs.Recorder()
    (result,) = search(["a"], SeedPruning(6, (0.5, 0.5), steps=(2, 5)), engine(), keep=2, on_event=recorder)
    picture = recorder.sheet(result)
    cell, pitch = sheet.CELL, sheet.CELL + sheet.TEXT + sheet.GAP
    assert picture.height == sheet.HEAD + 3 * pitch + sheet.MARGIN
    assert picture.width == sheet.LEFT + 6 * (cell + sheet.MARGIN) + sheet.MARGIN
    p, pixels = result.particles, np.asarray(picture).astype(float)
    assert len(recorder.thumbnails[0]) == 6 + 3 + 2
    best_first = sorted(range(6), key=lambda u: (u != result.best.uid, -p.scored[u], -p.value([u])[0]))
    for column, uid in enumerate(best_first):
        for line, step in enumerate((2, 5, 8)):
            at = (sheet.HEAD + line * pitch + 40, sheet.LEFT + column * (cell + sheet.MARGIN) + 40)
            if step > p.scored[uid]:
                assert (pixels[at] == 255).all() or p.scored[uid] < 0
                continue
            color = np.asarray(recorder.thumbnails[0][uid, step])[40, 40].astype(float)
            dropped = step == p.scored[uid] < 8
            np.testing.assert_allclose(pixels[at], color * 0.35 + 255 * 0.65 if dropped else color, atol=1.5)
    frame = (sheet.HEAD + 2 * pitch - 2, sheet.LEFT + 40)
    assert tuple(pixels[frame]) == (0x1A, 0x7F, 0x37)


def test_a_sheet_without_pictures_or_images_is_a_sheet(engine: Callable[..., Any]) -> None:
    (result,) = search(["a"], SeedPruning(2, (0.5,), steps=(2,)), engine(), should_stop=lambda: False)
    assert sheet.contact_sheet(result, {}).width >= 480


def test_the_head_counts_the_seeds_that_started(engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that was listed, but never evaluated, is no candidate."""
    (result,) = search(["a"], SeedPruning(2, (0.5,), steps=(2,)), engine())
    never = result.particles.step * 0
    particles = replace(result.particles, step=never, cached=never > 0)
    told = replace(result, spent=replace(result.spent, seeds=0), particles=particles)
    written: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **options: (written.append(a[2]), text(*a, **options)))
    sheet.contact_sheet(told, {})
    assert any(line.startswith(f"0 seeds, {told.spent.nfe} denoiser evaluations") for line in written)


def test_long_seeds_are_told_apart_within_their_columns(
    engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, written = outputs.Recorder(), list[tuple[str, float]]()
    first = 2**64 - 100
    (result,) = search(["a"], SeedPruning(12, (0.5,), steps=(1,)), engine(prompts=1), seed=first, on_event=recorder)
    draw = ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, words: str, fill: Any = None, font: Any = None, *more: Any, **others: Any) -> None:
        if words.startswith("seed "):
            written.append((words, self.textlength(words, font)))
        draw(self, at, words, fill, font, *more, **others)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    sheet.contact_sheet(result, recorder.thumbnails[0])
    named = dict(written)
    assert len(named) == 12
    assert max(named.values()) <= sheet.CELL
    assert {int(words[-2:]) for words in named} == {(first + i) % 100 for i in range(12)}


def test_rows_of_drafts_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []
    draw = ImageDraw.ImageDraw.multiline_text
    monkeypatch.setattr(ImageDraw.ImageDraw, "multiline_text", lambda *a, **k: (words.append(a[2]), draw(*a, **k)))
    recorder = outputs.Recorder()
    (result,) = search(["a"], SeedPruning(12, keep=(0.5,), steps=(3,)), made(), on_event=recorder)
    recorder.sheet(result)
    assert [text.partition("\n")[0] for text in words] == ["draft", "step 3", "finished"]


def test_kept_images_are_framed_and_the_source_stands_left_of_the_first_row(engine: Callable[..., Any]) -> None:
    recorder = outputs.Recorder()
    (result,) = search(["a"], SeedPruning(6, (0.5,), steps=(2,)), engine(), keep=3, on_event=recorder)
    plain, source = recorder.sheet(result), Image.new("RGB", (sheet.CELL, sheet.CELL), "orange")
    assert framed(plain, sheet.LEFT) == 3
    shown = recorder.sheet(replace(result, source=source))
    left = sheet.LEFT + sheet.CELL + sheet.MARGIN
    assert shown.width == plain.width + sheet.CELL + sheet.MARGIN
    assert framed(shown, left) == 3
    assert shown.getpixel((sheet.LEFT + 40, sheet.HEAD + 40)) == (255, 165, 0)


def test_frames_are_as_high_as_their_pictures(engine: Callable[..., Any]) -> None:
    recorder = outputs.Recorder()
    (result,) = search(["a"], SeedPruning(6, (0.5,), steps=(2,)), engine(), on_event=recorder)
    own = recorder.thumbnails[0]
    low = {look: picture.crop((0, 0, sheet.CELL, 32 if look[1] == 8 else 96)) for look, picture in own.items()}
    shown = sheet.contact_sheet(result, low)
    column = [shown.getpixel((sheet.LEFT + 40, y)) == (0x1A, 0x7F, 0x37) for y in range(shown.height)]
    top = sheet.HEAD + sheet.CELL + sheet.TEXT + sheet.GAP
    assert [y for y, green in enumerate(column) if green and y > top - 4] == [
        *range(top - 3, top),
        *range(top + 32, top + 35),
    ]


@pytest.mark.parametrize(("width", "height", "column"), [(96, 32, 96), (32, 96, 48)])
def test_rows_are_as_high_and_columns_as_wide_as_pictures(
    engine: Callable[..., Any], looks: Any, width: int, height: int, column: int
) -> None:
    recorder = outputs.Recorder()
    (result,) = search(["a"], SeedPruning(6, (0.5,), steps=(2,)), engine(), on_event=recorder)
    shaped = {look: picture.crop((0, 0, width, height)) for look, picture in recorder.thumbnails[0].items()}
    shown = sheet.contact_sheet(result, shaped)
    assert shown.height == sheet.HEAD + 2 * (height + sheet.TEXT + sheet.GAP) + sheet.MARGIN
    told = looks(result, shaped)
    assert {x for *_, x, _ in told} == {sheet.LEFT + i * (column + sheet.MARGIN) for i in range(6)}
    for uid, step, x, y in told[:1]:
        assert np.array_equal(np.asarray(shown.crop((x, y, x + width, y + height))), np.asarray(shaped[uid, step]))


def framed(picture: Image.Image, left: int) -> int:
    """How many finished images, in the second row, have a green frame."""
    y, pitch = sheet.HEAD + sheet.CELL + sheet.TEXT + sheet.GAP - 1, sheet.CELL + sheet.MARGIN
    corners = range(left + 40, picture.width, pitch)
    return sum(picture.getpixel((x, y)) == (0x1A, 0x7F, 0x37) for x in corners)


def test_of_many_seeds_some_pruned_ones_are_shown(engine: Callable[..., Any], looks: Any) -> None:
    recorder = outputs.Recorder()
    (result,) = search(["a"], SeedPruning(60, (0.5,), steps=(2,)), engine(), "999nfe", on_event=recorder)
    ends: dict[int, int] = {}
    for uid, step, *_ in looks(result, recorder.thumbnails[0]):
        ends[uid] = max(step, ends.get(uid, 0))
    pruned = [uid for uid, step in ends.items() if step == 2]
    assert 3 <= len(pruned) <= len(ends) / 3, "most are those that were finished"
    rank = sorted(
        (u for u in range(60) if result.particles.scored[u] == 2), key=lambda u: -result.particles.value([u])[0]
    )
    assert max(rank.index(uid) for uid in pruned) > 12, "not only the best of those that were pruned"


def test_a_sheet_of_many_tries_is_mostly_pictures(searched: Any, looks: Any) -> None:
    for name in ("rbf", "svdd"):
        result, recorder = searched(make_algorithm(name))
        told = looks(result, recorder.thumbnails[0])
        columns, rows = {x for *_, x, _ in told}, {y for *_, y in told}
        assert len(columns) <= NARROW or len(told) >= FILLED * len(columns) * len(rows)
        below: Counter[object] = Counter()
        origin = origins(result.trace, recorder.thumbnails[0])
        for uid, step, *_ in told:
            look = CandidateAtStep(uid, step)
            below[origin[look]] += look not in origin.values() and step < max(result.particles.step)
        assert max(below.values()) <= SIBLINGS
