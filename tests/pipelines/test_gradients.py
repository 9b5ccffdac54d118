"""Gradients through every family's denoiser and decoder, against finite differences in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.engine.gradient_steppers import GuidedStepper
from ttsnap.engine.gradients import Differentiator
from ttsnap.pipelines import load, upgrade
from ttsnap.pipelines.guidance import Texts
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.rng import seeded

from ..cover import each_once  # noqa: TID252
from .tiny import FAMILIES


def wavy(images: Tensor, prompts: Any) -> Tensor:
    """Smooth, and different at every pixel."""
    weights = torch.linspace(-1, 1, images[0].numel(), dtype=torch.float64).view(images[0].shape)
    return torch.sin(3 * images.double() * weights).flatten(1).mean(1)


def doubled(value: Any) -> Any:
    """Encoded texts in float64."""
    if isinstance(value, Texts):
        return Texts(*map(doubled, value))
    if isinstance(value, list):
        return [doubled(v) for v in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize(("name", "through"), each_once(list(FAMILIES), ["denoiser", "x0"]))
def test_gradients_of_every_family(name: str, through: str) -> None:
    pipe = upgrade(FAMILIES[name].build())
    denoiser = pipe.denoiser(**FAMILIES[name].call, num_inference_steps=4)
    if Capability.PATH not in denoiser.can or denoiser.grid.evals is not None:
        denoiser.convert()
    with torch.no_grad():
        denoiser.encode(["a cat"])
        x = denoiser.init_latents([seeded(0), seeded(1)]).double()
    vars(denoiser).update({key: doubled(value) for key, value in vars(denoiser).items()})
    getattr(pipe, denoiser.network).double(), pipe.vae.double()
    k, cond = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.long)
    differentiate = Differentiator(denoiser, [FunctionReward(wavy)], through)
    found = differentiate(x, k, cond, ["a cat"] * 2)
    generator = torch.Generator().manual_seed(2)
    uphill = found.gradient.double() / found.gradient.norm()
    direction = torch.randn(x.shape, generator=generator).double() + 10 * uphill
    # Parts of Sana compute in float32, and its norms of few channels bend sharply: its differences are coarser.
    ends, size, exact = [], *((5e-5, 4e-2) if name == "sana" else (1e-4, 2e-3))
    with torch.no_grad():
        for h in (size, -size):
            if through == "denoiser":
                x0 = denoiser.predict(x + h * direction, k, cond).x0
            else:
                slope = differentiate.slope(k, x)
                x0 = denoiser.predict(x, k, cond).x0 + h * slope * direction
            ends.append(float(wavy(denoiser.decode(x0), None).sum()))
    expected = (ends[0] - ends[1]) / (2 * size)
    assert float((found.gradient * direction).sum()) == pytest.approx(expected, rel=exact, abs=1e-8)
    assert abs(expected) > 1e-7
    assert not found.prediction.x0.requires_grad


def test_the_learned_reward_without_rounding() -> None:
    """Its smooth form scores as the exact one does, but for 8-bit rounding, and has its own gradient."""
    reward: Any = make_reward("scenes-learned")
    pipe = load()
    with torch.no_grad():
        out = pipe(["two red circles"], num_inference_steps=6, output_type="pt", generator=torch.manual_seed(0))
    images, prompts = out.images.float(), ["two red circles"]
    exact, smooth = reward(images, prompts), reward.differentiable(images, prompts)
    torch.testing.assert_close(smooth, exact, atol=0.02, rtol=0.0)
    leaf = images.clamp(0.05, 0.95).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.differentiable(leaf, prompts).sum(), leaf)
    uphill = gradient / gradient.norm()
    with torch.no_grad():
        ends = [float(reward.differentiable(leaf + h * uphill, prompts)) for h in (1e-2, -1e-2)]
    assert float(gradient.norm()) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02)


def test_quantised_networks_are_refused() -> None:
    pipe = upgrade(FAMILIES["sd3"].build())
    denoiser = pipe.denoiser(**FAMILIES["sd3"].call, num_inference_steps=4)

    class Frozen:
        is_trainable = False

    pipe.transformer.hf_quantizer = Frozen()
    with pytest.raises(ValueError, match=r"transformer is quantised by Frozen, which carries no gradients"):
        denoiser.differentiable("denoiser")
    denoiser.differentiable("x0")
    Frozen.is_trainable = True
    denoiser.differentiable("denoiser")


def bright(images: Tensor, prompts: Any) -> Tensor:
    return images.double().mean((1, 2, 3))


@pytest.mark.parametrize("name", ["sd3", "sdxl", "flux", "pixart_sigma"])
def test_climbing_through_pipelines(name: str) -> None:
    """By the scheduler's own step where it keeps no history, and by the ODE elsewhere."""
    pipe = upgrade(FAMILIES[name].build())
    kernel = "ode" if name == "pixart_sigma" else "pipeline"
    search = {"name": "noise-ascent", "rounds": 3, "angle": 0.2}
    _, (result,) = pipe("a cat", search=search, reward=bright, kernel=kernel, seed=3, num_inference_steps=3,
                             return_dict=False, **FAMILIES[name].call)  # fmt: skip
    scores = result.particles.scores[:, -1, 0]
    assert result.best.reward == scores.max() > scores[0]
    assert 1 <= result.spent.cost.gradients <= 3
    assert result.spent.nfe == 3 * (len(scores) + result.spent.cost.gradients)
    assert result.spent.cost.decodes == len(scores) + result.spent.cost.gradients
    assert all(p.grad is None for p in pipe.vae.parameters())  # which stock modules would keep


@pytest.mark.parametrize("guide", ["dps:1:1-0", "tilted:0.1:x0:1-0"])
def test_guided_calls_of_a_pipeline(guide: str) -> None:
    pipe = upgrade(FAMILIES["sd3"].build())
    call = {**FAMILIES["sd3"].call, "num_inference_steps": 4, "seed": 3, "kernel": "sde", "search": "best-of-n"}
    plain, guided = (pipe("a cat", reward=bright, budget="8nfe", **options, **call).search[0]
                     for options in ({}, {"guide": guide}))  # fmt: skip
    assert guided.best.reward > plain.best.reward
    assert guided.spent.cost.gradients == 2 * 3
    assert guided.spent.cost.decodes == guided.spent.cost.reward_calls == 2 + 2 * 3
    assert guided.spent.calibration.gradients == 1
    with pytest.raises(ValueError, match=r"choose kernel sde"):
        pipe("a cat", reward=bright, budget="8nfe", guide=guide, **{**call, "kernel": "pipeline"})


def test_checkpointing_saves_memory_and_is_priced() -> None:
    found = []
    for checkpointed in (False, True):
        pipe = upgrade(FAMILIES["sd3"].build())
        if checkpointed:
            pipe.transformer.enable_gradient_checkpointing()
        engine = pipe.engine(bright, kernel="sde", guide="dps:1:1-0", num_inference_steps=3, **FAMILIES["sd3"].call)
        engine.start()
        engine.admit([Prompt("a cat")])
        assert isinstance(engine.stepper, GuidedStepper)
        found.append((engine.stepper.row_bytes, engine.price.flops.backwards / engine.price.flops.nfe))
    assert found[1][0] < 0.8 * found[0][0]
    assert [ratio for _, ratio in found] == [2, 3]
