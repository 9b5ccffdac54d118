"""The idea in one file (examples/nano_ttsnap.py) finds what the product finds."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusion3Pipeline

from ttsnap.pipelines import load
from ttsnap.reward_models.scenes import ScenesReward
from ttsnap.scenes import weights_path

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def nano(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("nano_ttsnap")


def test_nano_finds_the_winner_of_the_product_with_the_same_evaluations(nano):
    reward = ScenesReward()
    stock = StableDiffusion3Pipeline.from_pretrained(weights_path())
    prompt = "two red circles and a blue square"
    result = nano.search(
        stock,
        prompt,
        lambda images, text: reward(images, [text] * len(images)),
        123,
        steps=20,
        guidance=4.0,
        height=32,
        width=32,
        max_sequence_length=1,
    )
    output = load()(
        prompt, search="seed-pruning", reward="scenes", draft="none", budget="123nfe", seed=0
    )
    search = output.search[0]
    assert result.seed == search.best.seed
    assert result.evaluations == search.spent.nfe == 123
    assert result.decodes == search.spent.cost.decodes
    pixels = np.asarray(result.image, float) - np.asarray(output.images[0], float)
    assert abs(pixels).max() <= 1


def test_nano_refuses_a_budget_below_one_image(nano):
    with pytest.raises(ValueError, match="12 evaluations"):
        nano.plan(12, 20, 8)


def test_nano_never_plans_more_than_its_budget(nano):
    for budget in range(20, 300):
        seeds = nano.plan(budget, 20, 8)
        assert nano.cost(seeds, 20, 8, 0.3) <= budget < nano.cost(seeds + 1, 20, 8, 0.3)
