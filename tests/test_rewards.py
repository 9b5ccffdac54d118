from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ttsnap import utility
from ttsnap.rewards import REWARDS, FunctionReward, make_reward, make_rewards

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
