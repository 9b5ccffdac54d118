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
from ttsnap.reward_models.registry import REWARDS, make_reward, make_rewards
from ttsnap.rewards.reward_model import FunctionReward, RewardModel
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


class Bare:
    """All that a reward needs."""

    name = "bare"

    def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
        return [float(len(p)) for p in prompts]


class Rich(Bare):
    """All that a user's class may have; `counted` says how often its FLOPs were asked for."""

    name, estimates, example, device = "rich", "latents", "a red circle", "meta"
    counted = 0

    @property
    def flops(self) -> float:
        self.counted += 1
        return 5.0

    def check(self, prompts: Any) -> None:
        raise ValueError(f"cannot read {prompts}")

    def score_estimates(self, x: Any, prompts: Any, level: Any) -> Any:
        return ["estimates"] * len(x)

    def differentiable(self, images: Any, prompts: Any, level: Any) -> Any:
        return ["gradient"] * len(images)

    def without_alpha(self, images: Any) -> Any:
        return images[:, 1:]


def test_a_bare_reward_gets_the_whole_interface() -> None:
    mine = Bare()
    made = make_reward(mine)
    assert isinstance(made, FunctionReward)
    assert made.given is mine
    assert (made.name, made.estimates, made.flops) == ("bare", "pixels", 0.0)
    assert (made.base, made.network, made.scores_estimates_apart) == (None, None, False)
    made.check(["anything"])
    assert made(IMAGES, ["a", "bc"]) == made.differentiable(IMAGES, ["a", "bc"]) == [1.0, 2.0]
    assert made.trial_image().shape == (1, 3, 64, 64)
    assert made.without_alpha(torch.zeros(2, 4, 5, 5)).shape == (2, 3, 5, 5)
    with pytest.raises(NotImplementedError, match=r"'bare' reads pixels: it needs a method score_estimates"):
        made.score_estimates(IMAGES, ["a", "b"], None)


def test_what_a_users_reward_has_takes_the_place_of_the_defaults() -> None:
    mine = Rich()
    made = make_reward(mine)
    assert mine.counted == 0
    assert made.flops == made.flops == 5.0
    assert mine.counted == 1
    assert (made.estimates, made.example) == ("latents", "a red circle")
    assert made.scores_estimates_apart
    assert made.score_estimates(IMAGES, [], None) == ["estimates"] * 2
    assert made.differentiable(IMAGES, [], None) == ["gradient"] * 2
    assert made.trial_image().device.type == "meta"
    assert made.without_alpha(torch.zeros(2, 4, 5, 5)).shape == (2, 3, 5, 5)
    with pytest.raises(ValueError, match=r"cannot read \['a'\]"):
        made.check(["a"])


def test_rewards_are_adapted_once() -> None:
    made = make_rewards([Bare(), two, "brightness"])
    assert make_rewards(made) == made
    assert all(isinstance(reward, RewardModel) for reward in made)


def test_unknown_spaces_are_refused() -> None:
    mine = Rich()
    mine.estimates = "sound"
    with pytest.raises(ValueError, match="'rich' reads estimates as 'sound'; known are pixels and latents"):
        make_reward(mine)


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="each with a name of its own"):
        make_rewards([two, two])


def test_utilities() -> None:
    scores = np.array([[1.0, 30.0], [2.0, 20.0], [3.0, 10.0], [3.0, 40.0]])
    assert utility.mean(scores).tolist() == [15.5, 11.0, 6.5, 21.5]
    assert utility.rank_sum(scores).tolist() == [4.0, 4.0, 4.5, 7.5]
    assert utility.make([1, 0.1])(scores).tolist() == [4.0, 4.0, 4.0, 7.0]
    assert utility.described("mean", ["a"]) == "a"
    assert utility.described("mean", ["a", "b", "c"]) == "mean of a, b and c"
    assert utility.described("rank_sum", ["a", "b"]) == "sum of the ranks of a and b"
    assert utility.described([1, 0.5], ["a", "b"]) == "1 a + 0.5 b"
    with pytest.raises(ValueError, match="1 weights for 2 rewards"):
        utility.make([1])(scores)
    with pytest.raises(ValueError, match="finite"):
        utility.make([float("nan")])
