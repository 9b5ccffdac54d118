"""Gradients through suspended stock calls, against finite differences in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from benchmarks import support_parts
from ttsnap.core.outcome import chosen
from ttsnap.core.prompt import Prompt
from ttsnap.engine.gradients import Differentiator
from ttsnap.pipelines import upgrade
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.rewards.scoring import Shown
from ttsnap.sampling.rng import seeded

from .tiny import call_of, stock

FRAMES = 2
"""Of a video, that the reward sees."""
QUICK = (
    "StableDiffusionControlNetPipeline",
    "StableDiffusion3InpaintPipeline",
    "WanPipeline",
    "ZImageModularPipeline",
)
CLASSES = [
    *QUICK,
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "FluxKontextPipeline",
            "QwenImageEditPipeline",
            "CogVideoXPipeline",
            "AnimateDiffPipeline",
            "LTX2Pipeline",
            "Krea2Pipeline",
            "Krea2ModularPipeline",
            "StableDiffusionPAGPipeline",
        )
    ),
]


def wavy(images: Tensor, prompts: Any) -> Tensor:
    """Smooth, and different at every pixel."""
    weights = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view(images[0].shape)
    return torch.sin(3 * images * weights).flatten(1).mean(1)


@pytest.mark.parametrize("name", CLASSES)
def test_a_gradient_is_the_slope_of_the_reward(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = support_parts.stock(name)
    case.pipe.to(dtype=torch.float64)
    arguments = {key: value for key, value in case.call.items() if key != "prompt"}
    with support_parts.small_pictures():
        denoiser = upgrade(case.pipe).denoiser(**arguments)
        denoiser.encode([Prompt("a cat")])
        cond = denoiser.conditions(torch.zeros(2, dtype=torch.long), [0, 1])
        x = denoiser.begin(denoiser.init_latents([seeded(0), seeded(1)]), cond)
        k = torch.tensor([0, 1])
        shown = Shown(None if denoiser.frames is None else FRAMES)
        differentiate = Differentiator(denoiser, [FunctionReward(wavy)], shown=shown)
        found = differentiate(x, k, cond, ["a cat"] * 2)
        uphill = found.gradient / found.gradient.norm()
        direction = torch.randn(x.shape, generator=seeded(2)).to(uphill) + 10 * uphill

        @torch.no_grad()
        def end(h: float) -> float:
            made = denoiser.predict(x + h * direction, k, cond)
            pictures = denoiser.decode_rows(made.x0, cond)
            seen = pictures
            if denoiser.frames is not None:
                seen = pictures[:, chosen(pictures.shape[1], FRAMES)].flatten(0, 1)
            return float(wavy(seen, None).sum()) * len(x) / len(seen)

        size = 1e-4
        expected = (end(size) - end(-size)) / (2 * size)
    slope = float((found.gradient * direction).sum())
    assert slope == pytest.approx(expected, rel=2e-3)
    assert abs(expected) > 1e-5
    assert not found.prediction.x0.requires_grad


def bright(images: Tensor, prompts: Any) -> Tensor:
    return images.double().mean((1, 2, 3))


def test_searches_follow_gradients_and_are_charged_for_them() -> None:
    name = "StableDiffusionControlNetPipeline"
    pipe = upgrade(stock(name))
    steps = call_of(name)["num_inference_steps"]
    for how in ({"guide": "dps:2:1-0", "kernel": "sde"}, {"search": "noise-ascent"}):
        given = {"search": {"name": "best-of-n", "n": 2}, **how, **call_of(name)}
        (result,) = pipe("a fox", reward=bright, budget="40nfe", seed=3, **given).search
        cost = result.spent.cost
        assert cost.gradients > 0
        assert cost.backwards == cost.gradients * (steps if "search" in how else 1)
    scores = result.particles.scores[:, -1, 0]
    assert result.best.reward == scores.max() > scores[0]


def test_what_has_no_gradient_is_refused_before_anything_is_computed() -> None:
    inpainting = upgrade(stock("StableDiffusion3InpaintPipeline"))
    call = call_of("StableDiffusion3InpaintPipeline")
    with pytest.raises(ValueError, match="picture"):
        inpainting("a fox", search="noise-ascent", reward=bright, budget="20nfe", **call)

    class Detaching(VaeImageProcessor):  # type: ignore[misc]
        def postprocess(self, image: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().postprocess(image.detach(), *args, **kwargs)

    pipe = upgrade(copy.copy(stock("PixArtAlphaPipeline")))
    pipe.image_processor = Detaching()
    call = {"kernel": "ode", **call_of("PixArtAlphaPipeline")}
    with pytest.raises(ValueError, match="decoder of PixArtAlpha"):
        pipe("a fox", search="noise-ascent", reward=bright, budget="20nfe", **call)
