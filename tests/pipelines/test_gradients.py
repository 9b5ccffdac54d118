"""Gradients through every family's denoiser and decoder, against finite differences in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ttsnap.core.prompt import Prompt
from ttsnap.engine.gradients import Differentiator
from ttsnap.pipelines import upgrade
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.rng import seeded
from ttsnap.scenes.grammar import parse
from ttsnap.scenes.render import render

from ..cover import each_once  # noqa: TID252
from .tiny import FAMILIES


def wavy(images: Tensor, prompts: Any) -> Tensor:
    """Smooth, and different at every pixel."""
    weights = torch.linspace(-1, 1, images[0].numel(), dtype=torch.float64).view(images[0].shape)
    return torch.sin(3 * images.double() * weights).flatten(1).mean(1)


@pytest.mark.parametrize(("name", "through"), each_once(list(FAMILIES), ["denoiser", "x0"]))
def test_gradients_of_every_family(name: str, through: str) -> None:
    pipe = upgrade(FAMILIES[name].build())
    denoiser = pipe.denoiser(**FAMILIES[name].call, num_inference_steps=4)
    if Capability.PATH not in denoiser.can or denoiser.grid.evals is not None:
        denoiser.convert()
    with torch.no_grad():
        denoiser.encode(["a cat"])
        x = denoiser.init_latents([seeded(0), seeded(1)]).double()
    doubled = tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, dict(vars(denoiser))
    )
    vars(denoiser).update(doubled)  # encoded texts, too
    getattr(pipe, denoiser.network).double(), pipe.vae.double()
    k, cond = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.long)
    differentiate = Differentiator(denoiser, [FunctionReward(wavy)], through)
    found = differentiate(x, k, cond, ["a cat"] * 2)
    uphill = found.gradient.double() / found.gradient.norm()
    direction = torch.randn(x.shape, generator=seeded(2)).double() + 10 * uphill
    # Parts of Sana compute in float32, and its norms of few channels bend sharply: its differences
    # are coarser.
    size, exact = (5e-5, 4e-2) if name == "sana" else (1e-4, 2e-3)
    slope = differentiate.slope(k, x) if through == "x0" else 0

    @torch.no_grad()
    def end(h: float) -> float:
        x0 = (
            denoiser.predict(x if through == "x0" else x + h * direction, k, cond).x0
            + h * slope * direction
        )
        return float(wavy(denoiser.decode(x0), None).sum())

    expected = (end(size) - end(-size)) / (2 * size)
    assert float((found.gradient * direction).sum()) == pytest.approx(expected, rel=exact, abs=1e-8)
    assert abs(expected) > 1e-7
    assert not found.prediction.x0.requires_grad


def test_the_learned_reward_without_rounding() -> None:
    """Its smooth form scores as the exact one does, but for 8-bit rounding, and has its own
    gradient."""
    reward: Any = make_reward("scenes-learned")
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


def test_quantised_networks_are_refused() -> None:
    denoiser = upgrade(FAMILIES["sd3"].build()).denoiser(**FAMILIES["sd3"].call)
    denoiser.net.hf_quantizer = SimpleNamespace(is_trainable=False)
    with pytest.raises(ValueError, match="quantised by SimpleNamespace"):
        denoiser.differentiable("denoiser")
    denoiser.differentiable("x0")
    denoiser.net.hf_quantizer.is_trainable = True
    denoiser.differentiable("denoiser")


def bright(images: Tensor, prompts: Any) -> Tensor:
    return images.double().mean((1, 2, 3))


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_climbing_by_a_schedulers_own_step(name: str) -> None:
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


def test_checkpointing_saves_memory_and_is_priced() -> None:
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
