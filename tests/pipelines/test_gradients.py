"""Gradients through stock calls, against finite differences in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from benchmarks import support_parts
from ttsnap.core.outcome import chosen
from ttsnap.core.prompt import Prompt
from ttsnap.engine.gradients import Differentiator
from ttsnap.pipelines import upgrade
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.rewards.scoring import Shown
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.rng import seeded
from ttsnap.scenes.grammar import parse
from ttsnap.scenes.render import render

from ..cover import each_once  # noqa: TID252
from .calls.tiny import call_of, stock
from .tiny import FAMILIES

FRAMES = 2
"""Of a video, that the reward sees."""
QUICK = (
    "StableDiffusionControlNetPipeline",
    "StableDiffusion3InpaintPipeline",
    "WanPipeline",
    "ZImageModularPipeline",
)
SLOW = (
    "FluxKontextPipeline",
    "QwenImageEditPipeline",
    "CogVideoXPipeline",
    "AnimateDiffPipeline",
    "LTX2Pipeline",
    "Krea2Pipeline",
    "Krea2ModularPipeline",
    "StableDiffusionPAGPipeline",
)
TEXT = [name for name in FAMILIES if name not in ("z_image", "lumina2")]
"""Z-Image's own call asserts float32, and that of Lumina 2 takes the dtype of its text encoder, Gemma,
which makes nan of float64."""
CASES = [
    *((name, "denoiser") for name in QUICK),
    *(pytest.param(name, "denoiser", marks=pytest.mark.slow) for name in SLOW),
    *each_once(TEXT, ["denoiser", "x0"]),
]


def wavy(images, prompts):
    """Smooth, and different at every pixel."""
    weights = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view(images[0].shape)
    return torch.sin(3 * images * weights).flatten(1).mean(1)


def opened(name):
    """The denoiser of a small call in float64."""
    if name in FAMILIES:
        pipe, call = FAMILIES[name].build(), {**FAMILIES[name].call, "num_inference_steps": 4}
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            case = support_parts.stock(name)
        pipe, call = case.pipe, {k: v for k, v in case.call.items() if k != "prompt"}
    pipe.to(dtype=torch.float64)
    if name == "sana":
        pipe.text_encoder.float()
    denoiser = upgrade(pipe).denoiser(**call)
    if name in FAMILIES and (Capability.PATH not in denoiser.can or denoiser.grid.evals):
        denoiser.convert()
    return denoiser


@pytest.mark.parametrize(("name", "through"), CASES)
def test_a_gradient_is_the_slope_of_the_reward(name, through):
    with support_parts.small_pictures():
        denoiser = opened(name)
        denoiser.encode([Prompt("a cat")])
        cond = denoiser.conditions(torch.zeros(2, dtype=torch.long), [0, 1])
        x = denoiser.begin(denoiser.init_latents([seeded(0), seeded(1)]), cond)
        k = torch.tensor([0, 1])
        shown = Shown(None if denoiser.frames is None else FRAMES)
        differentiate = Differentiator(denoiser, [FunctionReward(wavy)], through, shown=shown)
        found = differentiate(x, k, cond, ["a cat"] * 2)
        uphill = found.gradient / found.gradient.norm()
        direction = torch.randn(x.shape, generator=seeded(2)).to(uphill) + 10 * uphill
        slope = differentiate.slope(k, x) if through == "x0" else 0

        @torch.no_grad()
        def end(h):
            moved = x if through == "x0" else x + h * direction
            made = denoiser.predict(moved, k, cond)
            pictures = denoiser.decode_rows(made.x0 + h * slope * direction, cond)
            seen = pictures
            if denoiser.frames is not None:
                seen = pictures[:, chosen(pictures.shape[1], FRAMES)].flatten(0, 1)
            return float(wavy(seen, None).sum()) * len(x) / len(seen)

        # Parts of Sana compute in float32, and its norms of few channels bend sharply.
        size, exact = (1e-5, 4e-2) if name == "sana" else (1e-4, 2e-3)
        expected = (end(size) - end(-size)) / (2 * size)
    rise = float((found.gradient * direction).sum())
    assert rise == pytest.approx(expected, rel=exact)
    assert abs(expected) > 1e-7
    assert not found.prediction.x0.requires_grad


def bright(images, prompts):
    return images.double().mean((1, 2, 3))


def test_searches_follow_gradients_and_are_charged_for_them():
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


def test_what_has_no_gradient_is_refused_before_anything_is_computed():
    inpainting = upgrade(stock("StableDiffusion3InpaintPipeline"))
    call = call_of("StableDiffusion3InpaintPipeline")
    with pytest.raises(ValueError, match="picture"):
        inpainting("a fox", search="noise-ascent", reward=bright, budget="20nfe", **call)

    class Detaching(VaeImageProcessor):  # type: ignore[misc]
        def postprocess(self, image, *args, **kwargs):
            return super().postprocess(image.detach(), *args, **kwargs)

    pipe = upgrade(copy.copy(stock("PixArtAlphaPipeline")))
    pipe.image_processor = Detaching()
    call = {"kernel": "ode", **call_of("PixArtAlphaPipeline")}
    with pytest.raises(ValueError, match="decoder of PixArtAlpha"):
        pipe("a fox", search="noise-ascent", reward=bright, budget="20nfe", **call)


def test_the_learned_reward_without_rounding():
    """Its smooth form scores as the exact one does, but for 8-bit rounding, and has its own
    gradient."""
    reward = make_reward("scenes-learned")
    prompts = ["two red circles"]
    images = torch.from_numpy(
        0.7 * render([parse(prompts[0])], np.random.default_rng(0)) + 0.1
    ).float()
    exact, smooth = reward(images, prompts), reward.differentiable(images, prompts)
    torch.testing.assert_close(smooth, exact, atol=0.02, rtol=0.0)
    leaf = images.clamp(0.05, 0.95).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.differentiable(leaf, prompts).sum(), leaf)
    with torch.no_grad():
        ends = [
            float(reward.differentiable(leaf + h * gradient / gradient.norm(), prompts))
            for h in (3e-3, -3e-3)
        ]
    assert float(gradient.norm()) == pytest.approx((ends[0] - ends[1]) / 6e-3, rel=0.02)


def test_quantised_networks_are_refused():
    denoiser = upgrade(FAMILIES["sd3"].build()).denoiser(**FAMILIES["sd3"].call)
    denoiser.net.hf_quantizer = SimpleNamespace(is_trainable=False)
    with pytest.raises(ValueError, match="quantised by SimpleNamespace"):
        denoiser.differentiable("denoiser")
    denoiser.differentiable("x0")
    denoiser.net.hf_quantizer.is_trainable = True
    denoiser.differentiable("denoiser")


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_climbing_by_a_schedulers_own_step(name):
    pipe, call = (
        upgrade(FAMILIES[name].build()),
        {**FAMILIES[name].call, "num_inference_steps": 3, "seed": 3},
    )
    search = {"name": "noise-ascent", "rounds": 3, "angle": 0.2}
    (result,) = pipe("a cat", search=search, reward=bright, **call).search
    cost, scores = result.spent.cost, result.particles.scores[:, -1, 0]
    assert result.best.reward == scores.max() > scores[0]
    assert 1 <= cost.gradients <= 3
    assert cost.nfe == 3 * cost.decodes == 3 * (len(scores) + cost.gradients)
    assert all(p.grad is None for p in pipe.vae.parameters())  # which stock modules would keep


def test_checkpointing_saves_memory_and_is_priced():
    found, pipe = [], upgrade(FAMILIES["sd3"].build())
    for change in (lambda: None, pipe.transformer.enable_gradient_checkpointing):
        change()
        engine = pipe.engine(
            bright, kernel="sde", guide="dps:1:1-0", num_inference_steps=3, **FAMILIES["sd3"].call
        )
        engine.start()
        engine.admit([Prompt("a cat")])
        found.append(
            (engine.stepper.row_bytes, engine.price.flops.backwards / engine.price.flops.nfe)
        )
    assert found[1][0] < 0.8 * found[0][0]
    assert [ratio for _, ratio in found] == [2, 3]
