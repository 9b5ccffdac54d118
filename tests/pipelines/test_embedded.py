"""The embedded model under search against the same folder in stock diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from ttsnap import SeedPruning
from ttsnap.pipelines import defaults, load, upgrade
from ttsnap.scenes import sample_prompts, weights_path

CALL: dict[str, Any] = {**defaults(), "num_inference_steps": 8}


@pytest.fixture(scope="module")
def stock() -> Any:
    pipe = DiffusionPipeline.from_pretrained(weights_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_winners_of_many_prompts_are_made_again_by_stock_diffusers(stock: Any) -> None:
    prompts = sample_prompts(3, 5)
    found = upgrade(stock)(prompts, search=SeedPruning(), reward="scenes", report="scenes-strict", budget="60nfe",
                           batch_size=11, output_type="pt", seed=0, **CALL).search  # fmt: skip
    for result in found:
        assert 8 <= result.spent.nfe <= 60
        generator = torch.Generator().manual_seed(result.best.seed)
        again = stock(result.prompt, generator=generator, output_type="pt", **CALL).images[0]
        torch.testing.assert_close(result.best.image, again, atol=1e-4, rtol=0)
        assert result.best.metrics["scenes-strict"] in (0.0, 1.0)


def test_words_it_does_not_know_are_refused(stock: Any) -> None:
    pipe = load()
    for extra in ({}, {"search": "best-of-n", "reward": "scenes", "budget": "20nfe"}):
        with pytest.raises(ValueError, match=r"(?s)'cat'.*: .*circle"):
            pipe("a red cat", **extra)


def test_prompts_may_come_from_a_generator_but_not_from_a_closed_one(stock: Any) -> None:
    twin = upgrade(stock)
    prompts = (text for text in ["a red circle", "a blue cross"])
    how = {"search": "best-of-n", "reward": "scenes", "budget": "20nfe", **CALL}
    found = twin(prompts, **how).search
    assert [result.prompt for result in found] == ["a red circle", "a blue cross"]
    with pytest.raises(ValueError, match="needs a prompt"):
        twin(prompts, **how)
