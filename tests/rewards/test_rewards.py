from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ttsnap.core import utility
from ttsnap.rewards.registry import REWARDS, FunctionReward, make_reward, make_rewards
from ttsnap.rewards.scoring import score_images

IMAGES = torch.linspace(0, 1, 2 * 3 * 4).view(2, 3, 2, 2)


def two(images: Any, prompts: Any) -> Any:
    return images.mean((1, 2, 3))


def three(images: Any, prompts: Any, level: Any) -> Any:
    return level


def test_functions_with_and_without_level() -> None:
    assert make_reward(two)(IMAGES, ["a", "b"], torch.ones(2)).tolist() == pytest.approx([5.5 / 23, 17.5 / 23])
    assert make_reward(three)(IMAGES, ["a", "b"], [0.5, 0.1]) == [0.5, 0.1]
    assert make_reward(two).name == "two"
    assert make_reward(lambda images, prompts: [0]).name == "<lambda>"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64])
def test_scores_of_every_type_arrive(dtype: torch.dtype) -> None:
    scores = torch.tensor([0, 2], dtype=dtype).requires_grad_(dtype.is_floating_point)
    answers: list[Any] = [scores, list(scores), (scores[0], 2.0)]
    if dtype != torch.bfloat16:
        answers.append(scores.detach().numpy())
    for answer in answers:
        found, reason = score_images(lambda *_, a=answer: a, IMAGES, ["a", "b"], torch.zeros(2), "mine")
        assert (found.tolist(), found.dtype, reason) == ([0.0, 2.0], np.float64, None)


def test_scores_keep_their_last_digits_and_their_gaps() -> None:
    fine = torch.tensor([1 + 1e-12, float("nan")], dtype=torch.float64)
    found, _ = score_images(lambda *_: fine, IMAGES, ["a", "b"], torch.zeros(2), "mine")
    assert found[0] == 1 + 1e-12
    assert np.isnan(found[1])
    found, reason = score_images(lambda *_: [[1.0], [2.0]], IMAGES, ["a", "b"], torch.zeros(2), "mine")
    assert reason == "mine: ValueError: returned shape (2, 1) for 2 images; it must be (2,)"
    _, reason = score_images(lambda *_: None, IMAGES, ["a", "b"], torch.zeros(2), "mine")
    assert reason is not None
    assert reason.startswith("mine: ")


def test_from_file_and_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(images, prompts):\n    return [float(len(p)) for p in prompts]\n")
    reward = make_reward(f"{tmp_path}/mine.py:score")
    assert reward.name == "score"
    assert reward(IMAGES, ["a", "bcd"], None) == [1.0, 3.0]
    assert make_reward("math:hypot").name == "hypot"


@pytest.mark.parametrize("name", REWARDS)
def test_registered_rewards_have_their_names(name: str) -> None:
    module, _, attribute = REWARDS[name].partition(":")
    assert getattr(importlib.import_module(module), attribute).name == name


def test_weights_and_placement_reach_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Heavy:
        name = "heavy"

        @classmethod
        def from_pretrained(cls, name_or_path: str = "published", **options: Any) -> Any:
            made = FunctionReward(two, "heavy")
            made.asked = name_or_path, options  # type: ignore[attr-defined]
            return made

    monkeypatch.setitem(REWARDS, "heavy", f"{__name__}:Heavy")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Heavy=Heavy))  # type: ignore[arg-type]
    assert make_reward("heavy").asked == ("published", {})  # type: ignore[attr-defined]
    made = make_rewards("heavy:C:/a folder", device="meta", dtype="half")[0]
    assert made.asked == ("C:/a folder", {"device": "meta", "dtype": "half"})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lovely", "unknown reward 'lovely'; choose one of scenes"),
        ("nowhere.py:score", r"no such file: nowhere\.py"),
        ("math:lovely", "cannot load reward 'math:lovely'"),
        ("scenes:folder", "'scenes' has no weights to choose, got 'scenes:folder'"),
        ("imagereward:/nowhere", "cannot load '/nowhere'"),
        (3, r"a reward is a name, a function .* got 3"),
    ],
)
def test_bad_rewards_are_explained(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_reward(spec)


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="each with a name of its own"):
        make_rewards([two, two])


def test_utilities() -> None:
    scores = np.array([[1.0, 30.0], [2.0, 20.0], [3.0, 10.0], [3.0, 40.0]])
    assert utility.mean(scores).tolist() == [15.5, 11.0, 6.5, 21.5]
    assert utility.rank_sum(scores).tolist() == [4.0, 4.0, 4.5, 7.5]
    assert utility.make([1, 0.1])(scores).tolist() == [4.0, 4.0, 4.0, 7.0]
    with pytest.raises(ValueError, match="1 weights for 2 rewards"):
        utility.make([1])(scores)
    with pytest.raises(ValueError, match="finite"):
        utility.make([float("nan")])
