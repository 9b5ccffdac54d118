"""Measures against known answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ttsnap.distill.data import Frames
from ttsnap.distill.evaluate import Evaluation, evaluate, measure
from ttsnap.distill.report import plot, table

from .world import Brightness, estimate, write_recording


def test_measures_of_known_predictions() -> None:
    final = np.random.default_rng(0).normal(size=(5, 16))
    perfect = measure(final, final)
    ranks = ("spearman", "kendall", "top_accuracy", "top_regret", "slope", "intercept", "r2", "rmse")
    assert [perfect[key] for key in ranks] == pytest.approx([1, 1, 1, 0, 1, 0, 1, 0], abs=1e-12)
    shrunk = measure(0.5 * final + 3, final)  # right order, other scale
    assert [shrunk[key] for key in ranks[:6]] == pytest.approx([1, 1, 1, 0, 2, -6], abs=1e-9)
    assert shrunk["r2"] == pytest.approx(0.75)
    backwards = measure(-final, final)
    assert backwards["spearman"] == pytest.approx(-1)
    assert backwards["r2"] == pytest.approx(-3)
    offset = measure(final + np.arange(5)[:, None], final)  # a prompt's mean does not matter within it
    assert (offset["spearman"], offset["r2"]) == pytest.approx((1, 1))
    assert offset["rmse"] == pytest.approx(math.sqrt(np.mean(np.arange(5) ** 2)))
    constant = measure(np.zeros((5, 16)), final)
    assert math.isnan(constant["spearman"])
    assert math.isnan(constant["slope"])
    assert constant["r2"] == pytest.approx(0, abs=1e-12)


class Knows:
    """Reads the true brightness out of a table, by the red channel of the estimate."""

    name = "knows"

    def __init__(self, answers: dict[int, float]) -> None:
        self.answers = answers

    def __call__(self, images: torch.Tensor, prompts: list[str], level: torch.Tensor) -> torch.Tensor:
        assert level.shape == (len(images),)
        return torch.tensor([self.answers[hash(i.numpy().tobytes())] for i in images])


def test_rewards_on_recorded_estimates(tmp_path: Path) -> None:
    frames = Frames([write_recording(tmp_path / "r", prompts=4, seeds=6)])
    answers = {}
    for p in range(4):
        for s in range(6):
            for k in frames.steps:
                image = torch.from_numpy(np.round(estimate(p, s, k) * 255).astype(np.uint8)).float() / 255
                answers[hash(image.numpy().tobytes())] = estimate(p, s, 4).mean()
    finals = [np.array([estimate(p, s, 4).mean() for s in range(6)]) for p in (1, 3)]
    found = evaluate(
        {"brightness": Brightness(), "knows": Knows(answers)}, finals, frames, [1, 3], [0, 2], batch_size=5
    )
    assert [row["level"] for row in found.rows] == [0.5, 1.0]
    for row in found.rows:
        assert row["knows"]["spearman"] == pytest.approx(1)
        assert row["knows"]["rmse"] == pytest.approx(0, abs=1e-6)
        assert row["brightness"]["spearman"] < 0.99
    text = table(found)
    head = "noise step reward Spearman Kendall best kept regret R2 slope RMSE"
    assert text.splitlines()[0].replace("|", " ").split() == head.split()
    assert "2 prompts x 6 seeds" in text
    plot(found, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"'nan' gave no number for prompt 'prompt 1', seed 5, step 2"):
        evaluate({"nan": lambda x, *_: torch.full((len(x),), torch.nan)}, finals, frames, [1, 3], [2])
    with pytest.raises(ValueError, match=r"scores of shape \(1,\) for 12 images"):
        evaluate({"short": lambda *_: torch.zeros(1)}, finals, frames, [1, 3], [2])
    with pytest.raises(ValueError, match="no prompts"):
        evaluate({}, [], frames, [], [0])


def test_nan_becomes_null() -> None:
    found = Evaluation(("a",), 1, 2, rows=({"step": 0, "level": 1.0, "a": {"spearman": math.nan}},))
    assert found.to_json()["levels"][0]["a"]["spearman"] is None
