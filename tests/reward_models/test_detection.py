"""Counting with a detector whose answers are known, and with a tiny random OWLv2."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ttsnap.reward_models.detection import CountReward, parse_counts

from ..golden import tiny  # noqa: TID252


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("two red apples and three pears", {"red apples": 2, "pears": 3}),
        ("a cat on a red chair", {"cat": 1, "red chair": 1}),
        ("12 balloons, an owl, and 1 owl", {"balloons": 12, "owl": 2}),
        ("Four dogs", {"dogs": 4}),
        ("photo from 1999", {}),
        ("misty forest", {}),
    ],
)
def test_prompts_are_read(prompt: str, counts: dict[str, int]) -> None:
    assert parse_counts(prompt) == counts


class Inputs(dict[str, Any]):
    def to(self, device: Any) -> Inputs:
        return self


class Known:
    """A processor that "detects" as many things as the picture's mean grey says."""

    def __call__(self, images: Any, text: Any, return_tensors: str) -> Inputs:
        return Inputs(n=round(float(np.asarray(images).mean())), text=text[0][0])

    def post_process_grounded_object_detection(self, outputs: Any, threshold: float, target_sizes: Any) -> Any:
        return [{"scores": torch.ones(outputs.n if outputs.text == "apples" else 0)}]


class Passes(torch.nn.Linear):
    def forward(self, n: int, text: str) -> Any:
        return SimpleNamespace(n=n, text=text)


def test_squared_differences() -> None:
    reward = CountReward(Passes(1, 1), Known())
    images = torch.tensor([2.0, 4.0, 3.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4) / 255
    scores = reward(images, ["two apples", "two apples and a pear", "nothing here"])
    assert scores.tolist()[:2] == [0, -5]
    assert scores[2].isnan()
    reward.check(["two apples", ""])
    with pytest.raises(ValueError, match="'misty forest' counts nothing"):
        reward.check(["misty forest"])
    with pytest.raises(ValueError, match="threshold must be between"):
        CountReward(Passes(1, 1), Known(), threshold=2)


def test_a_tiny_owl(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    pytest.importorskip("torchvision")
    tiny.write_clip(tmp_path)
    text, vision = ({**tiny.CLIP_CONFIG[f"{kind}_config"]} for kind in ("text", "vision"))
    config = Owlv2Config(text_config={**text, "max_position_embeddings": 16}, vision_config=vision, projection_dim=32)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, model_max_length=16)
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    reward = CountReward(Owlv2ForObjectDetection(config), processor, threshold=0.01)
    images = torch.rand(2, 3, 32, 40)
    scores = reward(images, ["two cats", "a dog and a cat"])
    # 16 patches, each one box or none: the squared difference is that of a whole number.
    for score, most in zip(scores.tolist(), (14**2, 2 * 15**2), strict=True):
        assert -most <= score <= 0
        assert score == round(score)
