"""Groups of seeds in every family: coupled by formula, and the model itself where nothing is coupled."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor, nn

from tests.sampling.test_repel import by_formula
from ttsnap import BestOfN
from ttsnap.algorithms.best_of_n import OneOfGroup
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.variety import Repel
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.modular.denoiser import ModularDenoiser
from ttsnap.results import png_info
from ttsnap.results.record import parse_record
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.kernels import make_kernel
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


def stepped(pipe: Any, call: dict[str, Any], steps: int, seeds: Sequence[int] = SEEDS) -> Tensor:
    """Latents of the seeds after so many steps of the call."""
    denoiser = pipe.sampling_denoiser(SamplerOptions(), **call)
    denoiser.encode([PROMPT])
    generators = [seeded(seed) for seed in seeds]
    x, zero = denoiser.init_latents(generators), torch.zeros(len(seeds), dtype=torch.long)
    states = [denoiser.kernel.init(x[i], (seed, 0), generators[i]) for i, seed in enumerate(seeds)]
    with torch.no_grad():
        for k in range(steps):
            keys = [(seed, 0, k) for seed in seeds]
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
    assert torch.equal(begun(coupled, SEEDS[:1]), stepped(pipe, call, count, SEEDS[:1]))
    assert not torch.allclose(begun(coupled), expected, atol=1e-3)
    assert plain.grid.steps == STEPS - count


@pytest.mark.parametrize(
    "scheduler", [DPMSolverMultistepScheduler, HeunDiscreteScheduler, EulerAncestralDiscreteScheduler]
)
def test_schedulers_keep_their_history_over_the_coupled_steps(scheduler: Any) -> None:
    """With factor 0 a search over groups finds the images of a search without, each from its own seed."""
    pipe, call = family("sd15")
    pipe.scheduler = scheduler(**STABLE_DIFFUSION_BETAS)
    how = {"search": BestOfN(4), "reward": dark, "seed": 3, "num_images_per_prompt": 4, "output_type": "latent", **call}
    plain = pipe(PROMPT, **how).images
    torch.testing.assert_close(pipe(PROMPT, variety="repel:3:0.75:0", **how).images, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(pipe(PROMPT, variety="repel:3:0.75:3:0.2", **how).images, plain, atol=1e-2)


def test_compiled_networks_are_coupled() -> None:
    pipe, call = family("sd3")
    sampler = SamplerOptions(variety="repel:3:0.75:3:0.2")
    expected = begun(pipe.sampling_denoiser(sampler, **call))
    net = copy.deepcopy(pipe.transformer)
    net.compile(backend="eager")
    pipe.transformer = net
    plain = begun(pipe.sampling_denoiser(SamplerOptions(variety="repel:3:0.75:0"), **call))
    torch.testing.assert_close(begun(pipe.sampling_denoiser(sampler, **call)), expected)
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_winners_begin_with_the_group_that_the_image_names() -> None:
    pipe, call = family("sd3")
    how = {"reward": dark, "variety": "repel:3:0.75:3:0.2", **call}
    out = pipe(PROMPT, search=BestOfN(5), seed=11, num_images_per_prompt=5, **how)
    records = [parse_record(png_of(image), Path("x.png")) for image in out.images]
    assert {(r.image.seed, r.image.place) for r in records} == {(11, 0), (12, 1), (13, 2), (14, 0), (15, 1)}
    for image, record in zip(out.images, records, strict=True):
        (again,) = pipe(PROMPT, search=OneOfGroup(record.image.place), seed=record.image.first_seed, **how).images
        assert np.abs(np.asarray(again, int) - np.asarray(image, int)).max() <= 1
    assert record.sampler.variety == how["variety"]
    assert "ttsnap group: from seed" in out.images[0].info["parameters"]


def png_of(image: Any) -> bytes:
    write_png = io.BytesIO()
    image.save(write_png, "PNG", pnginfo=png_info(image))
    return write_png.getvalue()


def test_what_cannot_be_is_refused() -> None:
    pipe, call = family("sd3")

    def refused(match: str, **more: Any) -> None:
        with pytest.raises(ValueError, match=match):
            pipe(PROMPT, search=BestOfN(2), reward=dark, **{**call, "variety": "repel", **more})

    refused("1 of 1 here", num_inference_steps=1)
    refused("0 of 3 here.*repel:8:0.75", sigmas=[0.5, 0.3, 0.2])
    refused("kernel of its name", kernel=make_kernel("ode", pipe.denoiser(**call)))
    refused("on one device", devices=2)
    refused("leave variety out", guide="dps:1", kernel="sde")
    with pytest.raises(ValueError, match="couple no seeds"):
        ModularDenoiser.must(ModularDenoiser.__new__(ModularDenoiser), Capability.COUPLE)


@pytest.mark.usefixtures("real_flops")
def test_what_coupling_takes_is_counted() -> None:
    """Of each token a product with every token of the group, at each attention and in both halves of guidance."""
    pipe, call = upgrade(FAMILIES["sd3"].build()), FAMILIES["sd3"].call
    engine = pipe.engine(dark, variety="repel:3:0.75", **call)
    net, price, attentions, halves = engine.denoiser.net, engine.price, 2, 2
    engine.denoiser.encode([PROMPT])
    tokens = engine.denoiser.init_latents([seeded(0)]).shape[-2:].numel() // net.config.patch_size**2
    width = net.get_submodule(ENDS["sd3"][0]).in_features
    assert price.flops.coupled == 2 * attentions * halves * tokens * 3 * tokens * width
    assert price.flops.nfe == pipe.engine(dark, **call).price.flops.nfe
