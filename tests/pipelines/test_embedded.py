"""The embedded model under search against the same folder in stock diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline

from ttsnap import SeedPruning
from ttsnap.pipelines import defaults, upgrade
from ttsnap.scenes import sample_prompts, weights_path

from .tiny import quiet


def test_winners_of_many_prompts_are_made_again_by_stock_diffusers() -> None:
    stock, prompts = quiet(DiffusionPipeline.from_pretrained(weights_path())), sample_prompts(3, 5)
    call: dict[str, Any] = {**defaults(), "num_inference_steps": 8}
    found = upgrade(stock)(prompts, search=SeedPruning(), reward="scenes", report="scenes-strict", budget="60nfe",
                           batch_size=11, output_type="pt", seed=0, **call).search  # fmt: skip
    for result in found:
        assert 8 <= result.spent.nfe <= 60
        generator = torch.Generator().manual_seed(result.best.seed)
        again = stock(result.prompt, generator=generator, output_type="pt", **call).images[0]
        torch.testing.assert_close(result.best.image, again, atol=1e-4, rtol=0)
        assert result.best.metrics["scenes-strict"] in (0.0, 1.0)
