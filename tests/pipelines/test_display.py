"""How people are shown what a packaged model draws: large, and nothing that a search decides
changes by it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from ttsnap.cli import main
from ttsnap.pipelines import load
from ttsnap.pipelines.display import load_display
from ttsnap.pipelines.packaged import MODELS
from ttsnap.results.rank import find_images, rank
from ttsnap.results.record import read_record
from ttsnap.reward_models.registry import make_reward
from ttsnap.scenes import display_path, parse, render
from ttsnap.scenes.checker import check

PROMPT = "a red circle left of a blue square"
SEARCH: dict[str, Any] = {
    "search": "seed-pruning",
    "reward": "scenes",
    "budget": "24nfe",
    "seed": 3,
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load("embedded")


@pytest.fixture(scope="module")
def found(pipe: Any) -> Any:
    return pipe(PROMPT, num_inference_steps=6, **SEARCH)


@pytest.mark.parametrize("model", MODELS)
def test_a_packaged_decoder_fits_its_model_and_is_small(model: str) -> None:
    folder = MODELS[model].display
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    wide = 24 if model == "signs" else 8
    latents, images = torch.zeros(1, 8, 8, wide), torch.full((1, 3, 32, 4 * wide), 0.5)
    with torch.no_grad():
        drawn = load_display(folder)(latents, images)
    assert drawn.shape == (1, 3, 128, 16 * wide)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1


def test_a_layout_is_drawn_as_it_is_rendered_large(pipe: Any) -> None:
    texts = [PROMPT, "two green crosses", "a yellow triangle on a black background"]
    small, large = (
        torch.from_numpy(render([parse(t) for t in texts], np.random.default_rng(0), scale=scale))
        for scale in (1, 4)
    )
    torch.testing.assert_close(avg_pool2d(large, 4), small, atol=0.25, rtol=0)
    vae = pipe.vae
    with torch.no_grad():
        mean = vae.encode(2 * small - 1).latent_dist.mean
        seen = (vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
        latents = (mean - vae.config.shift_factor) * vae.config.scaling_factor
        drawn = load_display(display_path())(latents, seen)
    assert float((drawn - large).abs().mean()) < 0.02
    assert check(avg_pool2d(drawn, 4).numpy(), [parse(t) for t in texts])[1].all()


def test_display_changes_nothing_but_what_is_shown(pipe: Any, found: Any) -> None:
    plain = pipe(PROMPT, num_inference_steps=6, display="small", **SEARCH)
    large, small = found.search[0], plain.search[0]
    assert large.best.shown.shape == (3, 128, 128)
    assert small.best.drawing is None
    assert torch.equal(small.best.shown, small.best.pixels)
    assert torch.equal(large.best.pixels, small.best.pixels)
    assert large.best.to_json() == small.best.to_json()
    assert large.spent.cost == small.spent.cost
    assert large.trace == small.trace
    assert found.images[0].size == plain.images[0].size == (32, 32)
    averaged = avg_pool2d(large.best.shown, 4)
    assert float((averaged - large.best.pixels).abs().mean()) < 0.02
    assert set(large.thumbnails) == set(small.thumbnails)
    again = pickle.loads(pickle.dumps(large))
    assert torch.equal(again.best.shown, large.best.shown)


def test_a_saved_image_is_large_and_made_again_to_the_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    how = ["generate", PROMPT, "--budget", "12nfe", "--steps", "6", "--device", "cpu"]
    assert main([*how, "--out", "large"]) == main([*how, "--out", "small", "--display", "small"])
    (path,), (scored,) = find_images(Path("large")), find_images(Path("small"))
    assert [Image.open(each).size for each in (path, scored)] == [(128, 128), (32, 32)]
    assert read_record(path).image.drawn == 4
    assert "Size: 32x32" in Image.open(path).info["parameters"], "of the model's call"
    assert read_record(scored).image.drawn is None
    capsys.readouterr()
    for each in (path, scored):
        assert main(["replay", str(each)]) == 0
        assert "largest difference" in (said := capsys.readouterr().out)
        assert ": 0 of 255" in said
    ranked = rank([path, scored], [PROMPT] * 2, [make_reward("scenes")], lambda s: s[:, 0])
    values = {each.path: each.value for each in ranked}
    assert values[path] == pytest.approx(values[scored], abs=0.1), "a large one is averaged first"
