"""Closed forms; one reward for estimates and another for finished images; tournaments of judges of
known answers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from ttsnap.reward_models.closed_form import (
    Brightness,
    Colourfulness,
    Compressibility,
    Incompressibility,
    Place,
)
from ttsnap.reward_models.preprocess import to_pictures
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.staged import Staged
from ttsnap.reward_models.tournament import TournamentReward, bradley_terry, tournament
from ttsnap.rewards.reward_model import FunctionReward


def flat(*colour):
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def test_jpeg_size_is_that_of_the_file():
    images = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    to_pictures(images)[1].save(file, format="JPEG", quality=95)
    size, small = (reward(images, ["", ""]) for reward in (Incompressibility(), Compressibility()))
    assert size[1].item() == pytest.approx(len(file.getvalue()) / 1000)
    assert torch.equal(small, -size)


def test_brightness_and_colourfulness():
    batch = torch.cat([flat(0, 0, 0), flat(1, 1, 1), flat(1, 0, 0), flat(0.5, 0.5, 0.5)])
    assert Brightness()(batch, [""] * 4).tolist() == pytest.approx([0, 1, 0.299, 0.5])
    # Flat red: both opponent axes are constant, at 255 and 127.5.
    red = 0.3 * float(np.hypot(255, 127.5))
    assert Colourfulness()(batch, [""] * 4).tolist() == pytest.approx([0, 0, red, 0])
    halves = torch.cat([flat(1, 0, 0), flat(0, 1, 0)], -1)
    expected = 255 + 0.3 * 127.5  # rg is +-255, yb 127.5 throughout
    assert Colourfulness()(halves, [""]).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="must be"):
        Brightness()(batch.byte(), [""] * 4)


def test_place_is_what_an_edit_and_its_source_share_whatever_the_hue():
    grey, red, blue = flat(0.5, 0.5, 0.5), flat(1, 0, 0), flat(0, 0, 1)
    left, right = torch.cat([red, grey], -1), torch.cat([grey, blue], -1)
    edits = torch.cat([left, torch.cat([blue, grey], -1), right, torch.cat([red, red], -1)])
    assert Place()(edits, [""] * 4, source=left.expand(4, -1, -1, -1)).tolist() == pytest.approx(
        [1, 1, 0, 0.5]
    )
    small = left[..., ::2, ::2]
    # of another size
    assert Place()(edits, [""] * 4, source=small.expand(4, -1, -1, -1))[1].item() > 0.7
    assert Place()(grey, [""], source=grey).tolist() == [0]  # nothing to compare, and no nan
    assert make_reward("place").needs == {"source"}  # type: ignore[attr-defined]


def test_estimates_and_finished_images_have_their_own_reward():
    calls = []

    def costly(images, prompts, level):
        calls.append((len(images), prompts, level.tolist()))
        return [10.0 + i for i in range(len(prompts))]

    reward = Staged(Brightness(), FunctionReward(costly))
    assert reward.name == "brightness then costly"
    batch = torch.cat([flat(0.2, 0.2, 0.2), flat(0, 0, 0), flat(1, 1, 1), flat(0, 0, 0)])
    scores = reward(batch, ["a", "b", "c", "d"], torch.tensor([0.7, 0.0, 0.1, 0.0]))
    assert scores.tolist() == pytest.approx([0.2, 10, 1, 11])
    assert calls == [(2, ["b", "d"], [0.0, 0.0])]
    assert reward(batch, ["a", "b", "c", "d"]).tolist() == [10, 11, 12, 13]
    assert make_reward("brightness then compressibility").name == "brightness then compressibility"
    with pytest.raises(ValueError, match="unknown reward 'lovely'"):
        make_reward("brightness then lovely")


def test_gradients_are_those_of_the_reward_whose_images_they_are():
    reward, images, prompts = (
        Staged(Brightness(), Colourfulness()),
        torch.rand(2, 3, 4, 4),
        ["a", "b"],
    )
    for level, one in ((0.7, reward.early), (0.0, reward.final)):
        found = reward.differentiable(images, prompts, torch.tensor([level, level]))
        torch.testing.assert_close(found, one(images, prompts))
    with pytest.raises(ValueError, match="apart"):
        reward.differentiable(images, prompts, torch.tensor([0.0, 0.7]))


def test_staged_passes_checks_on_and_prices_a_finished_image_apart():
    with pytest.raises(ValueError, match="zebra"):
        make_reward("brightness then scenes").check(["a zebra"])
    cheap, costly = Brightness(), Brightness()
    costly.flops = 3e9  # type: ignore[attr-defined]
    priced = [(one.flops, one.base_flops) for one in (Staged(cheap, costly), Staged(costly, cheap))]
    assert priced == [(0, 3e9), (3e9, 0)]


# --- tournaments ----------------------------------------------------------------------------------


def test_strengths_are_those_of_bradley_and_terry():
    two = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=1e3)
    assert two[0] - two[1] == pytest.approx(np.log(3), abs=1e-4)
    assert bradley_terry(np.zeros((3, 3))).tolist() == [0, 0, 0]
    assert np.isfinite(bradley_terry(np.array([[0.0, 9.0], [0.0, 0.0]]))).all()
    true = np.array([-1.0, -0.2, 0.1, 1.1])
    p = 1 / (1 + np.exp(true[None] - true[:, None]))
    assert bradley_terry(1e5 * p * (1 - np.eye(4)), prior=100.0) == pytest.approx(true, abs=1e-3)


def test_a_sure_judge_orders_everything_and_the_budget_holds():
    asked = []

    def judge(i, j):
        asked.append((i, j))
        return float(i > j)

    n = 12
    strengths = tournament(n, judge, 5 * n)
    assert len(asked) == 5 * n
    assert {i for pair in asked[:n] for i in pair} == set(range(n))
    assert kendalltau(strengths, range(n))[0] > 0.9
    assert np.argmax(strengths) == n - 1
    asked.clear()
    tournament(n, judge, 3)
    assert len(asked) == 3


def test_a_judge_that_favours_the_first_image_is_balanced():
    strengths = tournament(6, lambda i, j: 1.0, 60)
    assert np.abs(strengths).max() < 0.5  # unbalanced, it would order them by place
    assert tournament(5, lambda i, j: 0.5, 30) == pytest.approx(np.zeros(5), abs=1e-6)


def test_as_a_reward_by_prompt():
    def brighter(a, b, prompt):
        assert prompt in ("x", "y")
        return float(a.mean() > b.mean()) if a.mean() != b.mean() else 0.5

    images = torch.tensor([0.1, 0.9, 0.5, 0.3]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    reward = TournamentReward(brighter)
    scores = reward(images, ["x", "x", "x", "y"])
    assert reward.name == "tournament-brighter"
    assert scores.dtype == np.float32
    assert np.argsort(scores[:3]).tolist() == [0, 2, 1]
    assert scores[3] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tournament(0, lambda i, j: 1.0, 1), "at least 1 item"),
        (lambda: tournament(2, lambda i, j: 2.0, 1), "got 2.0"),
        (lambda: tournament(2, lambda i, j: float("nan"), 1), "got nan"),
        (lambda: bradley_terry(np.zeros((2, 3))), r"got shape \(2, 3\)"),
        (lambda: bradley_terry(np.zeros((2, 2)), prior=0), "prior"),
        (lambda: TournamentReward(lambda a, b, p: 1.0, rounds=0), "rounds"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
