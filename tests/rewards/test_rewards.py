from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from ttsnap.core import utility
from ttsnap.reward_models.likeness import make_likeness
from ttsnap.reward_models.registry import REWARDS, make_reward, make_rewards
from ttsnap.rewards.reward_model import FunctionReward, RewardModel
from ttsnap.rewards.scoring import score_images

IMAGES = torch.linspace(0, 1, 2 * 3 * 4).view(2, 3, 2, 2)


def two(images, prompts):
    return images.mean((1, 2, 3))


def three(images, prompts, level):
    return level


def test_functions_with_and_without_level_of_objects_and_files(tmp_path):
    assert make_reward(two)(IMAGES, ["a", "b"], torch.ones(2)).tolist() == pytest.approx(
        [5.5 / 23, 17.5 / 23]
    )
    assert make_reward(three)(IMAGES, ["a", "b"], [0.5, 0.1]) == [0.5, 0.1]
    (tmp_path / "mine.py").write_text(
        "def score(images, prompts):\n    return [float(len(p)) for p in prompts]\n"
    )
    specs = (two, lambda images, prompts: [0], "math:hypot", f"{tmp_path}/mine.py:score")
    made = [make_reward(spec) for spec in specs]
    assert [reward.name for reward in made] == ["two", "<lambda>", "hypot", "score"]
    assert made[-1](IMAGES, ["a", "bcd"], None) == [1.0, 3.0]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64]
)
def test_scores_of_every_type_arrive(dtype):
    scores = torch.tensor([0, 2], dtype=dtype).requires_grad_(dtype.is_floating_point)
    answers = [scores, list(scores), (scores[0], 2.0)]
    if dtype != torch.bfloat16:
        answers.append(scores.detach().numpy())
    for answer in answers:
        found, reason = score_images(
            lambda *_, a=answer: a, IMAGES, ["a", "b"], torch.zeros(2), "mine"
        )
        assert (found.tolist(), found.dtype, reason) == ([0.0, 2.0], np.float64, None)


def test_scores_keep_their_last_digits_and_their_gaps():
    def scored(answer):
        return score_images(lambda *_: answer, IMAGES, ["a", "b"], torch.zeros(2), "mine")

    found, _ = scored(torch.tensor([1 + 1e-12, float("inf")], dtype=torch.float64))
    assert found[0] == 1 + 1e-12
    assert np.isnan(found[1])
    assert (
        scored([[1.0], [2.0]])[1]
        == "mine: ValueError: returned shape (2, 1) for 2 images; it must be (2,)"
    )
    assert scored(None)[1].startswith("mine: ")


@pytest.mark.parametrize("name", REWARDS)
def test_registered_rewards_have_their_names(name):
    module, _, attribute = REWARDS[name].partition(":")
    assert getattr(importlib.import_module(module), attribute).name == name


class Heavy(FunctionReward):
    @classmethod
    def from_pretrained(cls, name_or_path="published", **options):
        made = cls(two, "heavy")
        made.asked = name_or_path, options
        return made


def test_weights_and_placement_reach_the_class(monkeypatch):
    monkeypatch.setitem(REWARDS, "heavy", f"{__name__}:Heavy")
    plain = make_reward("heavy")
    (placed,) = make_rewards("heavy:C:/a folder", device="meta", dtype="half")
    assert plain.asked == ("published", {})
    assert placed.asked == ("C:/a folder", {"device": "meta", "dtype": "half"})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lovely", "'lovely'; choose one of scenes"),
        ("nowhere.py:score", r"no such file: nowhere\.py"),
        ("math:lovely", "cannot load reward 'math:lovely'"),
        ("scenes:folder", "no weights to choose, got 'scenes:folder'"),
        ("imagereward:/nowhere", "cannot load '/nowhere'"),
        (3, r"a reward is a name, a function .* got 3"),
        ([two, two], "a name of its own"),
    ],
)
def test_bad_rewards_are_explained(spec, message):
    with pytest.raises(ValueError, match=message):
        make_rewards(spec)


class Bare:
    """All that a reward needs."""

    name = "bare"

    def __call__(self, images, prompts, level):
        return [float(len(p)) for p in prompts]


class Rich(Bare):
    """All that a user's class may have; `counted` says how often its FLOPs were asked for."""

    name, estimates, example, device = "rich", "latents", "a red circle", "meta"
    counted = 0

    @property
    def flops(self):
        self.counted += 1
        return 5.0

    def check(self, prompts):
        raise ValueError(f"cannot read {prompts}")

    def score_estimates(self, x, prompts, level):
        return ["estimates"] * len(x)

    def differentiable(self, images, prompts, level):
        return ["gradient"] * len(images)

    def embed_images(self, images):
        return images.mean((2, 3))

    def without_alpha(self, images):
        return images[:, 1:]


def test_a_bare_reward_gets_the_whole_interface():
    made = make_reward(Bare())
    assert isinstance(made.given, Bare)
    assert (made.name, made.estimates, made.flops) == ("bare", "pixels", 0.0)
    assert (made.base, made.network, made.scores_estimates_apart) == (None, None, False)
    made.check(["anything"])
    assert made(IMAGES, ["a", "bc"]) == made.differentiable(IMAGES, ["a", "bc"]) == [1.0, 2.0]
    assert made.trial_image().shape == (1, 3, 64, 64)
    assert made.without_alpha(torch.zeros(2, 4, 5, 5)).shape == (2, 3, 5, 5)
    with pytest.raises(NotImplementedError, match=r"'bare' .* score_estimates"):
        made.score_estimates(IMAGES, ["a", "b"], None)


def test_what_a_users_reward_has_takes_the_place_of_the_defaults():
    mine = Rich()
    made = make_reward(mine)
    assert mine.counted == 0
    assert made.flops == made.flops == 5.0
    assert mine.counted == 1
    assert (made.estimates, made.example) == ("latents", "a red circle")
    assert made.scores_estimates_apart
    assert made.score_estimates(IMAGES, [], None) == ["estimates"] * 2
    assert made.differentiable(IMAGES, [], None) == ["gradient"] * 2
    assert make_likeness("reward", [made])(IMAGES).shape == (2, 3)  # type: ignore[misc]
    assert made.trial_image().device.type == "meta"
    assert made.without_alpha(torch.zeros(2, 4, 5, 5)).shape == (2, 3, 5, 5)
    with pytest.raises(ValueError, match=r"cannot read \['a'\]"):
        made.check(["a"])


def test_rewards_are_adapted_once_and_read_known_spaces():
    mine = Rich()
    made = make_rewards([mine, two, "brightness"])
    assert make_rewards(made) == made
    assert all(isinstance(reward, RewardModel) for reward in made)
    mine.estimates = "sound"
    with pytest.raises(ValueError, match=r"'sound'; .*pixels and latents"):
        make_reward(mine)


def test_utilities():
    scores = np.array([[1.0, 30.0], [2.0, 20.0], [3.0, 10.0], [3.0, 40.0]])
    assert utility.mean(scores).tolist() == [15.5, 11.0, 6.5, 21.5]
    assert utility.rank_sum(scores).tolist() == [4.0, 4.0, 4.5, 7.5]
    assert utility.make([1, 0.1])(scores).tolist() == [4.0, 4.0, 4.0, 7.0]
    for how, names, text in (
        ("mean", "a", "a"),
        ("mean", "abc", "mean of a, b and c"),
        ("rank_sum", "ab", "sum of the ranks of a and b"),
        ([1, 0.5], "ab", "1 a + 0.5 b"),
    ):
        assert utility.described(how, list(names)) == text
    with pytest.raises(ValueError, match="1 weights for 2 rewards"):
        utility.make([1])(scores)
    with pytest.raises(ValueError, match="finite"):
        utility.make([float("nan")])
