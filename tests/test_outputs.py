"""What is written: metadata that comes back, sheets, traces, nothing overwritten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ttsnap import SeedPruning, outputs, search

SETTINGS: dict[str, Any] = {
    "ttsnap": "0.0", "model": "toy, v1", "sampler": "Ode", "kernel": "pipeline",
    "call": {"num_inference_steps": 8, "guidance_scale": 4.0, "negative_prompt": "fog"},
    "algorithm": "seed-pruning", "options": {}, "budget": "60nfe", "reward": "brightness",
}  # fmt: skip


@pytest.fixture
def finished(engine: Any) -> tuple[list[Any], outputs.Recorder]:
    recorder = outputs.Recorder()
    algorithm = SeedPruning(6, (0.5, 0.5), steps=(2, 5))
    return search(["a", "b: c/d"], algorithm, engine(), keep=2, on_event=recorder), recorder


def test_files_and_metadata(finished: Any, tmp_path: Path) -> None:
    results, recorder = finished
    written = outputs.write_results(tmp_path, results, recorder, SETTINGS)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"trace.json", "000-a-sheet.png", "001-b-c-d-sheet.png"} < names
    assert len(names) == 3 + 4
    best = results[1].best
    path = written[1][0]
    assert path.name == f"001-b-c-d-01-seed{best.seed}.png"
    payload = outputs.read_payload(path)
    assert payload["seed"] == best.seed
    assert payload["call"] == SETTINGS["call"]
    assert payload["search"]["reward"] == pytest.approx(best.reward)
    text = Image.open(path).info["parameters"]
    assert text.splitlines()[0] == "b: c/d"
    assert text.splitlines()[1] == "Negative prompt: fog"
    assert f'Steps: 8, Sampler: Ode, CFG scale: 4.0, Seed: {best.seed}, Size: 1x1, Model: "toy, v1"' in text
    assert np.array_equal(np.asarray(Image.open(path)), outputs.to_uint8(best.image))
    trace = json.loads((tmp_path / "trace.json").read_text())
    entry = trace["results"][1]
    assert sum(m["cost"]["nfe"] for m in entry["moves"]) == entry["spent"]["nfe"] == results[1].spent["nfe"]
    assert entry["images"][0]["file"] == path.name


def test_sheet_shows_every_candidate_and_dims_the_pruned(finished: Any) -> None:
    results, recorder = finished
    sheet = recorder.sheet(results[0])
    assert sheet.height == outputs.HEAD + 3 * (outputs.CELL + 24) + outputs.MARGIN
    assert sheet.width == outputs.LEFT + 6 * (outputs.CELL + outputs.MARGIN) + outputs.MARGIN
    assert len(recorder.thumbnails[0]) == 6 + 3 + 2
    p, pixels = results[0].particles, np.asarray(sheet)
    by_rank = sorted(range(6), key=lambda u: (-p.scored[u], -p.value([u])[0]))
    for place, uid in enumerate(by_rank):
        shown = pixels[outputs.HEAD + 40, outputs.LEFT + place * (outputs.CELL + outputs.MARGIN) + 40].astype(float)
        color = np.asarray(recorder.thumbnails[0][uid, 2])[40, 40].astype(float)
        pruned = p.scored[uid] == 2
        np.testing.assert_allclose(shown, color * 0.35 + 255 * 0.65 if pruned else color, atol=1.5)


def test_the_sheet_counts_the_seeds_that_started(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that was listed, but never evaluated, is no candidate."""
    results, recorder = finished
    never = results[0].particles.step * 0
    particles = replace(results[0].particles, step=never, cached=never > 0)
    told = replace(results[0], spent={**results[0].spent, "seeds": 0}, particles=particles)
    written: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **options: (written.append(a[2]), text(*a, **options)))
    recorder.sheet(told)
    assert f"0 seeds, {told.spent['nfe']} denoiser evaluations" in written


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"no image"), "cannot read .* as an image"),
        (lambda p: Image.new("RGB", (2, 2)).save(p), "carries no ttsnap metadata"),
        (lambda p: _save(p, "{"), "is damaged"),
        (lambda p: _save(p, "[1]"), "lacks"),
        (
            lambda p: _save(p, '{"prompt": "a"}'),
            r"lacks \['call', 'kernel', 'model', 'sampler', 'search', 'seed', 'ttsnap'\]",
        ),
        (lambda p: None, "no such image"),
    ],
)
def test_foreign_and_broken_images_are_explained(make: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(ValueError, match=message):
        outputs.read_payload(path)


def _save(path: Path, text: str) -> None:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("ttsnap", text)
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)


def test_a_branch_shows_its_ancestors_pictures_up_to_where_it_left() -> None:
    parents, born = [-1, 0, 1], {0: 0, 1: 3, 2: 6}
    assert [outputs._owner(2, step, parents, born) for step in (0, 3, 4, 6, 7)] == [0, 0, 1, 1, 2]
    assert outputs._owner(0, 5, parents, born) == 0
