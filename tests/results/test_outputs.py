"""What is written: metadata that comes back, sheets, traces, nothing overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ttsnap import SeedPruning, search
from ttsnap.options.sampler import SamplerOptions
from ttsnap.results import outputs
from ttsnap.results.media import to_uint8
from ttsnap.results.record import SearchRecord, read_record
from ttsnap.rewards.reward_model import FunctionReward

CALL = {"num_inference_steps": 8, "guidance_scale": 4.0, "negative_prompt": "fog"}
RECORD = SearchRecord("toy, v1", "Ode", CALL, SamplerOptions(), "seed-pruning", {}, "60nfe")


def test_files_and_metadata(engine: Any, tmp_path: Path) -> None:
    results = search(["a", "b: c/d"], SeedPruning(6, (0.5, 0.5), steps=(2, 5)), engine(), keep=2)
    written = outputs.write_results(tmp_path, results, RECORD)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"trace.json", "000-a-sheet.png", "001-b-c-d-sheet.png"} < names
    assert len(names) == 3 + 4
    best, path = results[1].best, written[1][0]
    assert path.name == f"001-b-c-d-01-seed{best.seed}.png"
    payload = read_record(path).to_json()
    assert payload["seed"] == best.seed
    assert payload["call"] == CALL
    assert payload["search"]["reward"] == pytest.approx(best.reward)
    text = Image.open(path).info["parameters"]
    assert text.splitlines()[:2] == ["b: c/d", "Negative prompt: fog"]
    assert f'Steps: 8, Sampler: Ode, CFG scale: 4.0, Seed: {best.seed}, Size: 1x1, Model: "toy, v1"' in text
    assert np.array_equal(np.asarray(Image.open(path)), to_uint8(best.image))
    entry = json.loads((tmp_path / "trace.json").read_text())["results"][1]
    assert sum(m["cost"]["nfe"] for m in entry["moves"]) == entry["spent"]["nfe"] == results[1].spent.nfe
    assert entry["images"][0]["file"] == path.name


def test_images_without_a_score_are_written(engine: Any, tmp_path: Path) -> None:
    """A reward that breaks down after its first batch: all images are unscored, and none of them is lost."""
    calls: list[int] = []

    def breaks_down(images: Any, prompts: Any) -> Any:
        calls.append(len(images))
        return images.mean((1, 2, 3)) if len(calls) == 1 else [float("nan")] * len(images)

    reward = FunctionReward(breaks_down, "mine")
    results = search(["a"], SeedPruning(4, (0.5,), steps=(2,)), engine(rewards=[reward]), keep=2)
    (paths,) = outputs.write_results(tmp_path, results, RECORD)
    assert len(paths) == 2
    payload = read_record(paths[0]).to_json()
    assert payload["search"]["reward"] is payload["search"]["scores"]["mine"] is None
    assert "ttsnap reward" not in Image.open(paths[0]).info["parameters"]
    assert "no image has a score: which of them is the best is not known" in results[0].warnings


def saved(path: Path, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ttsnap", text)
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"no image"), "as an image"),
        (lambda p: Image.new("RGB", (2, 2)).save(p), "no ttsnap metadata"),
        (lambda p: saved(p, "{"), "damaged"),
        (lambda p: saved(p, "[1]"), "lacks"),
        (lambda p: saved(p, '{"prompt": "a"}'), "'call', 'kernel', 'model', 'sampler', 'search', 'seed', 'ttsnap'"),
        (lambda p: None, "no such image"),
    ],
)
def test_foreign_and_broken_images_are_explained(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "x.png")
    with pytest.raises(ValueError, match=message):
        read_record(tmp_path / "x.png")
