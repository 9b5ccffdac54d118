"""What the inputs of ComfyUI's nodes mean, without ComfyUI."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttsnap.algorithms import name_of
from ttsnap.comfyui.inputs import (
    KERNELS,
    NODE_BUDGET,
    REWARD_NAMES,
    NodeReward,
    Wanted,
    Weighted,
    frames,
    values_of,
)
from ttsnap.core.results import Candidate
from ttsnap.loop.budget import Budget
from ttsnap.reward_models.registry import REWARDS, make_reward
from ttsnap.sampling.kernels import KERNELS as ALL_KERNELS

BRIGHT = Weighted(make_reward("brightness"), 1.0)


def request(**given):
    how = {
        "sampler_name": "euler",
        "algorithm": "seed-pruning",
        "options": "",
        "budget": None,
        "seed": 3,
        "keep": 1,
    }
    return Wanted(**{"prompt": "a red circle", "reward": [BRIGHT], **how, **given}).search()


def test_a_request_says_what_the_node_was_given():
    grey = Weighted(make_reward("colourfulness"), -0.5)
    made = request(
        reward=[BRIGHT, grey], budget=Budget(nfe=40), seed=2**64 - 1, keep=2, batch_size=4
    )
    assert made.prompt.read == "a red circle"
    assert (made.seed, made.selection.keep, made.budget.nfe, made.engine.batch.batch_size) == (
        2**64 - 1,
        2,
        40,
        4,
    )
    assert made.selection.values(np.array([[1.0, 2.0], [3.0, 10.0]])).tolist() == [0.0, -2.0]
    assert made.engine.sampler.kernel == "pipeline"
    assert request().budget == NODE_BUDGET
    assert request().engine.batch.batch_size is None
    assert [request(diverse=each).selection.diversity for each in (False, True)] == [0.0, 1.0]


def test_options_are_data_of_the_algorithm_that_was_chosen():
    assert request(options='{"n": 20}').algorithm.n == 20
    assert name_of(request(options='{"name": "smc", "n": 20}').algorithm) == "seed-pruning"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"options": "{n: 20}"}, "options"),
        ({"options": "[20]"}, "keys and values"),
        ({"options": '{"m": 20}'}, "unknown option"),
        ({"options": '{"n": 20000}'}, "10000"),
        ({"algorithm": "tuned.json"}, "no search"),
        ({"algorithm": "smc"}, "'ttsnap: sde'"),
    ],
)
def test_what_no_search_can_be_made_of_is_refused(given, why):
    with pytest.raises(ValueError, match=why):
        request(**given)


def test_ttsnaps_own_samplers_are_its_kernels():
    assert request(algorithm="smc", sampler_name="ttsnap: sde").engine.sampler.kernel == "sde"
    assert request(sampler_name="ttsnap: ddim").engine.sampler.kernel == "ddim"
    assert set(KERNELS.values()) == ALL_KERNELS.keys() - {"pipeline"}


def test_rewards_are_names_that_need_no_file():
    assert set(REWARD_NAMES) < REWARDS.keys()
    assert not [
        name
        for name in REWARD_NAMES
        if ":" in name or "/" in name or "." in name.replace("v2.1", "")
    ]
    assert [REWARD_NAMES[0], REWARD_NAMES[-1][:6]] == ["aesthetics", "scenes"]


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 5, 3, 4, 6)], ids=["images", "frames"])
def test_images_and_frames_of_videos_come_in_a_row(shape):
    made = torch.rand(shape)
    found = frames([Candidate(i, i, 0.0, {}, one) for i, one in enumerate(made)])
    assert torch.equal(found, made.reshape(-1, 3, 4, 6).movedim(1, -1))


def test_scores_are_weighted_sums():
    images = torch.stack([torch.full((8, 8, 3), grey) for grey in (0.2, 0.6)])
    plain, _ = values_of(images, "", [BRIGHT])
    chain = [BRIGHT, Weighted(make_reward("colourfulness"), 3.0), BRIGHT._replace(weight=2)]
    twice, report = values_of(images, "", chain)
    assert twice == pytest.approx([3 * value for value in plain])
    assert plain[1] > plain[0]
    assert report.startswith(f"0: reward {twice[0]:.4g}, brightness ")
    with pytest.raises(ValueError, match="quotes"):
        values_of(images, "no quoted text", [Weighted(Strict(), 1.0)])


class Strict(type(BRIGHT.reward)):  # type: ignore[misc]
    def check(self, prompts):
        raise ValueError("give text in quotes")


class Scorer:
    """A node as ComfyUI declares them, of its first kind."""

    RETURN_TYPES, FUNCTION = ("STRING", "FLOAT"), "score"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        mode = (["mean", "max"],)
        return {
            "required": {
                "picture": ("IMAGE",),
                "scorer": ("SCORER",),
                "text": ("STRING", {}),
                "mode": mode,
                "gain": ("FLOAT", {"default": 2.0}),
                "how": ("COMBO", {"options": ["fast"]}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def score(self, picture, scorer, text, mode, gain, how):
        assert picture.shape == (1, 4, 6, 3)
        return "", [float(getattr(picture, mode)()) * gain * scorer + len(text) + (how == "fast")]


class Wrapped(Scorer):
    def score(self, **given):
        return {"ui": {}, "result": super().score(**given)}


def test_a_node_scores_by_its_first_number_with_defaults_and_the_prompt():
    images = torch.rand(2, 3, 4, 6)
    expected = [float(image.mean()) * 2 * 10 + 3 + 1 for image in images]
    for kind in (Scorer, Wrapped):
        assert NodeReward("Scorer", kind, also=10)(images, ["abc", "abc"]) == pytest.approx(
            expected
        )
    with pytest.raises(ValueError, match="`also`"):
        NodeReward("Scorer", Scorer)
    with pytest.raises(ValueError, match="Nothing"):
        NodeReward("Nothing", None)
    with pytest.raises(ValueError, match="gives STRING"):
        NodeReward("Scorer", type("Silent", (Scorer,), {"RETURN_TYPES": ("STRING",)}), also=10)
