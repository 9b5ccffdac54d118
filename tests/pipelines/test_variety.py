"""Groups of seeds in every family: coupled by formula, and the model itself where nothing is coupled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from tests.sampling.test_repel import by_formula
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.variety import Repel
from ttsnap.pipelines import upgrade
from ttsnap.sampling.rng import generator, seeded

from .tiny import FAMILIES, STABLE_DIFFUSION_BETAS, shared

PROMPT = "a red circle"
SEEDS = (5, 6, 7)
STEPS = 4

# By family: where attention ends, in the order of the network's modules.
UNET = [f"{place}.transformer_blocks.{i}.attn1.to_out.0" for place in
        ("down_blocks.1.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1", "mid_block.attentions.0")
        for i in (0, 1)]  # fmt: skip
JOINT = ["transformer_blocks.0.attn.to_out.0", "transformer_blocks.1.attn.to_out.0"]
ENDS: dict[str, list[str]] = {
    "flux": ["transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.attn"],
    "flux2_klein": ["transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.attn.to_out"],
    "sd3": JOINT,
    "sdxl": UNET,
    "qwen_image": JOINT,
    "z_image": ["noise_refiner.0.attention.to_out.0", "layers.0.attention.to_out.0", "layers.1.attention.to_out.0"],
    "lumina2": [f"{place}.attn.to_out.0" for place in ("noise_refiner.0", "noise_refiner.1", "layers.0", "layers.1")],
}


def dark(images: Any, prompts: Any) -> Any:
    return -images.mean((1, 2, 3))


def family(name: str) -> tuple[Any, dict[str, Any]]:
    pipe = upgrade(copy.copy(shared(name)))
    if name in ("sd15", "sdxl"):  # PNDM begins at the start alone; each is at less noise than flows are
        pipe.scheduler = DDIMScheduler(**STABLE_DIFFUSION_BETAS)
    return pipe, {**FAMILIES[name].call, "num_inference_steps": STEPS}


def begun(denoiser: Any, seeds: Sequence[int] = SEEDS) -> Tensor:
    """Latents of the group of these seeds where they begin."""
    denoiser.encode([PROMPT])
    generators = [seeded(seed) for seed in seeds]
    noise, cond = denoiser.init_latents(generators), torch.zeros(len(seeds), dtype=torch.long)
    x, _ = denoiser.groups.begin(noise, cond, [(seed, 0) for seed in seeds], generators)
    return x


def stepped(pipe: Any, call: dict[str, Any], steps: int) -> Tensor:
    """Latents of the seeds after so many steps of the call."""
    denoiser = pipe.sampling_denoiser(SamplerOptions(), **call)
    denoiser.encode([PROMPT])
    generators = [seeded(seed) for seed in SEEDS]
    x, zero = denoiser.init_latents(generators), torch.zeros(len(SEEDS), dtype=torch.long)
    states = [denoiser.kernel.init(x[i], (seed, 0), generators[i]) for i, seed in enumerate(SEEDS)]
    with torch.no_grad():
        for k in range(steps):
            keys = [(seed, 0, k) for seed in SEEDS]
            x, states = denoiser.kernel.step(x, denoiser.predict(x, zero + k, zero), zero + k, keys, states)
    return x


@pytest.mark.parametrize("name", sorted(ENDS))
def test_attention_is_coupled_by_formula(name: str) -> None:
    """The call's own steps with a network whose attention is changed by hand, one pass of the network at a time."""
    pipe, call = family(name)
    how = Repel(3, 0.75, 3.0, 0.2, 0.3)
    denoiser = pipe.sampling_denoiser(SamplerOptions(variety="repel:3:0.75:3:0.2:0.3"), **call)
    count, image = denoiser.groups.nfe, denoiser.image_tokens
    made, position = begun(denoiser), 0
    assert 0 < count < STEPS

    def change(h: Tensor, layer: int) -> Tensor:
        out, chosen = h.double().clone(), h[:, image].double()
        kept = torch.rand(3, chosen.shape[1], generator=generator((SEEDS[0], position, layer))) >= 0.3
        out[:, image] = torch.cat([by_formula(group, kept, how) for group in chosen.split(3)])
        return out.to(h.dtype)

    def wrapped(module: nn.Module, layer: int, end: str) -> Callable[..., Any]:
        plain, width = module.forward, getattr(denoiser.net, "inner_dim", 0)
        if not end.endswith("to_out.0") and not end.endswith("to_out"):
            return lambda *args, **more: change(plain(*args, **more), layer)
        if end.endswith("to_out"):
            return lambda h: plain(torch.cat([change(h[..., :width], layer), h[..., width:]], -1))
        return lambda h, *more: plain(change(h, layer), *more)

    net = copy.deepcopy(denoiser.net)
    for layer, end in enumerate(ENDS[name]):
        module = net.get_submodule(end)
        module.forward = wrapped(module, layer, end)  # type: ignore[method-assign]
    plain = family(name)[0]
    setattr(plain, denoiser.network, net)
    reference = plain.sampling_denoiser(SamplerOptions(), **call)
    reference.encode([PROMPT])
    x, zero = reference.init_latents([seeded(seed) for seed in SEEDS]), torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        for position in range(count):
            at = zero + position
            x, _ = reference.kernel.step(x, reference.predict(x, at, zero), at, [()] * 3, [None] * 3)
    torch.testing.assert_close(made, x, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made, stepped(pipe, call, count), atol=1e-3)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_nothing_coupled_is_the_model_to_the_bit(name: str) -> None:
    pipe, call = family(name)
    plain = pipe.sampling_denoiser(SamplerOptions(variety="repel:3:0.75:0"), **call)
    count = plain.groups.nfe
    expected = stepped(pipe, call, count)
    assert torch.equal(begun(plain), expected)
    coupled = pipe.sampling_denoiser(SamplerOptions(variety="repel:3:0.75"), **call)
    alone = torch.cat([begun(coupled, [seed]) for seed in SEEDS])
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(begun(coupled), expected, atol=1e-3)
    assert plain.grid.steps == STEPS - count
