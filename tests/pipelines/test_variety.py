"""Groups of seeds that are coupled: by formula, and the model itself where nothing is changed."""

from __future__ import annotations

import copy
import dataclasses
import io
import unittest.mock
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from tests.sampling.test_variety import by_formula
from ttsnap import BestOfN
from ttsnap.algorithms.best_of_n import OneOfGroup
from ttsnap.engine.shared_denoiser import SharedDenoiser
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.variety import Repel
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls.coupling import CoupledHub
from ttsnap.results import png_info
from ttsnap.results.record import parse_record
from ttsnap.sampling.kernels import make_kernel
from ttsnap.sampling.rng import generator, seeded

from .tiny import FAMILIES, STABLE_DIFFUSION_BETAS, shared

PROMPTS = ["a red circle", "two blue squares"]
SEEDS = (5, 6, 7)
STEPS = 4

# By family: where attention ends, in the order of the network's modules.
UNET = [
    f"{place}.transformer_blocks.{i}.attn1.to_out.0"
    for place in (
        "down_blocks.1.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
        "mid_block.attentions.0",
    )
    for i in (0, 1)
]
JOINT = ["transformer_blocks.0.attn.to_out.0", "transformer_blocks.1.attn.to_out.0"]
ENDS = {
    "flux": ["transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.attn"],
    "flux2_klein": [
        "transformer_blocks.0.attn.to_out.0",
        "single_transformer_blocks.0.attn.to_out",
    ],
    "sd3": JOINT,
    "sdxl": UNET,
    "qwen_image": JOINT,
    "z_image": [
        "noise_refiner.0.attention.to_out.0",
        "layers.0.attention.to_out.0",
        "layers.1.attention.to_out.0",
    ],
    "lumina2": [
        f"{place}.attn.to_out.0"
        for place in ("noise_refiner.0", "noise_refiner.1", "layers.0", "layers.1")
    ],
}


IMAGE = {
    "flux": slice(-24, None),
    "flux2_klein": slice(-24, None),
    "lumina2": slice(-6, None),
    "z_image": slice(0, 24),
}
"""Where image tokens are in attention, where text has some as well."""


def dark(images, prompts):
    return -images.mean((1, 2, 3))


def family(name):
    pipe = upgrade(copy.copy(shared(name)))
    # PNDM begins at the start alone; each is at less noise than flows are
    if name in ("sd15", "sdxl"):
        pipe.scheduler = diffusers.DDIMScheduler(**STABLE_DIFFUSION_BETAS)
    return pipe, {**FAMILIES[name].call, "num_inference_steps": STEPS}


def sampling(pipe, variety, call):
    denoiser = pipe.sampling_denoiser(SamplerOptions(variety=variety), **call)
    denoiser.encode(PROMPTS)
    return denoiser


def begun(denoiser, seeds=SEEDS):
    """Latents of the group of these seeds where they begin."""
    generators = [seeded(seed) for seed in seeds]
    noise, cond = denoiser.init_latents(generators), torch.zeros(len(seeds), dtype=torch.long)
    keys = [(seed, 0) for seed in seeds]
    begun = denoiser.starter.begin(noise, cond, keys, generators)
    return begun.latents


@torch.no_grad()
def stepped(denoiser, steps, seeds=SEEDS, now=None):
    """Latents of the seeds after so many steps of a plain call, whose positions come into `now`."""
    generators = [seeded(seed) for seed in seeds]
    x, zero = denoiser.init_latents(generators), torch.zeros(len(seeds), dtype=torch.long)
    states = [denoiser.kernel.init(x[i], (seed, 0), generators[i]) for i, seed in enumerate(seeds)]
    for k in range(steps):
        if now is not None:
            now.append(k)
        keys = [(seed, 0, k) for seed in seeds]
        x, states = denoiser.kernel.step(
            x, denoiser.predict(x, zero + k, zero), zero + k, keys, states
        )
    return x


@pytest.mark.parametrize("name", sorted(ENDS))
def test_attention_is_coupled_by_formula(name):
    """As by a network whose attention is changed by hand, in groups that change nothing."""
    (pipe, call), how = family(name), Repel(3, 0.75, 3.0, 0.2, 0.3)
    denoiser = sampling(pipe, "repel:3:0.75:3:0.2:0.3", call)
    image, net, now = IMAGE.get(name, slice(None)), copy.deepcopy(denoiser.net), [0]
    assert 0 < denoiser.start.alone.nfe < STEPS

    def change(h, layer):
        out, chosen = h.double().clone(), h[:, image].double()
        kept = (
            torch.rand(3, chosen.shape[1], generator=generator((SEEDS[0], now[-1], layer))) >= 0.3
        )
        groups = [by_formula(group, kept[: len(group)], how) for group in chosen.split(3)]
        out[:, image] = torch.cat(groups)
        return out.to(h.dtype)

    def wrapped(module, layer, end):
        plain, width = module.forward, getattr(net, "inner_dim", 0)
        if not end.endswith("to_out.0") and not end.endswith("to_out"):
            return lambda *args, **more: change(plain(*args, **more), layer)
        if end.endswith("to_out"):
            return lambda h: plain(torch.cat([change(h[..., :width], layer), h[..., width:]], -1))
        return lambda h, *more: plain(change(h, layer), *more)

    for layer, end in enumerate(ENDS[name]):
        module = net.get_submodule(end)
        own = {"forward": staticmethod(wrapped(module, layer, end))}
        module.__class__ = type("Coupled", (type(module),), own)
    changed = family(name)[0]
    setattr(changed, denoiser.network, net)
    by_hand = sampling(changed, "repel:3:0.75:0", call)
    plain = by_hand.starter.predict

    def predict(x, step, cond, key):
        now.append(int(step[0]))
        with unittest.mock.patch.object(CoupledHub, "_must_join"):  # of rows that are coupled
            return plain(x, step, cond, key)

    by_hand.starter = dataclasses.replace(by_hand.starter, predict=predict)
    made = begun(denoiser)
    torch.testing.assert_close(made, begun(by_hand), rtol=1e-4, atol=1e-5)
    free = stepped(sampling(pipe, None, call), denoiser.start.alone.nfe)
    assert not torch.allclose(made, free, atol=1e-3)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_nothing_coupled_is_the_model_to_the_bit(name):
    pipe, call = family(name)
    plain, none, coupled = (
        sampling(pipe, how, call) for how in (None, "repel:3:0.75:0", "repel:3:0.75")
    )
    count = none.start.alone.nfe
    expected = stepped(plain, count)
    assert torch.equal(begun(none), expected)
    assert torch.equal(begun(coupled, SEEDS[:1]), stepped(plain, count, SEEDS[:1]))
    assert not torch.allclose(begun(coupled), expected, atol=1e-3)
    assert none.grid.steps == STEPS - count


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "HeunDiscrete", "EulerAncestralDiscrete"])
def test_schedulers_keep_their_history_over_the_coupled_steps(name):
    """With factor 0 a search over groups finds the images of a search without, each from its own
    seed."""
    pipe, call = family("sd15")
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler")(**STABLE_DIFFUSION_BETAS)
    how = {
        "search": BestOfN(4),
        "reward": dark,
        "seed": 3,
        "num_images_per_prompt": 4,
        "output_type": "latent",
        **call,
    }
    plain = pipe(PROMPTS[0], **how).images
    torch.testing.assert_close(
        pipe(PROMPTS[0], variety="repel:3:0.75:0", **how).images, plain, rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(
        pipe(PROMPTS[0], variety="repel:3:0.75:3:0.2", **how).images, plain, atol=1e-2
    )


COMPILED_OR_HOOKED = {
    "compiled": lambda pipe: pipe.transformer.compile(backend="eager"),
    "wrapped": lambda pipe: setattr(
        pipe, "transformer", torch.compile(pipe.transformer, backend="eager")
    ),
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "group offload": lambda pipe: pipe.enable_group_offload(
        torch.device("cpu"), offload_type="leaf_level"
    ),
    "cast": lambda pipe: pipe.transformer.enable_layerwise_casting(
        torch.float8_e4m3fn, torch.float32
    ),
}


@pytest.mark.parametrize("name", COMPILED_OR_HOOKED)
def test_compiled_and_offloaded_networks_are_coupled(name):
    pipe, call = upgrade(FAMILIES["sd3"].build()), family("sd3")[1]
    COMPILED_OR_HOOKED[name](pipe)
    none = sampling(pipe, "repel:3:0.75:0", call)
    expected = stepped(sampling(pipe, None, call), none.start.alone.nfe)
    torch.testing.assert_close(begun(none), expected)
    made = begun(sampling(pipe, "repel:3:0.75:3:0.2", call))
    assert not torch.allclose(made, expected, atol=1e-3)
    if name != "cast":  # which rounds weights
        torch.testing.assert_close(
            made, begun(sampling(family("sd3")[0], "repel:3:0.75:3:0.2", call))
        )
    assert not any(module._forward_pre_hooks for module in pipe.transformer.modules())


def test_an_image_says_how_and_is_made_again():
    (pipe, call), variety = family("sd3"), "repel:3:0.75:3:0.2"
    how = {"reward": dark, "variety": variety, **call}
    out = pipe(PROMPTS, search=BestOfN(4), seed=11, num_images_per_prompt=4, batch_size=7, **how)
    plain = pipe(PROMPTS, search=BestOfN(4), seed=11, num_images_per_prompt=4, reward=dark, **call)
    assert not {image.tobytes() for image in out.images} & {
        image.tobytes() for image in plain.images
    }
    found = []
    for image in out.images:
        image.save(file := io.BytesIO(), "PNG", pnginfo=png_info(image))
        record = parse_record(file.getvalue(), Path("x.png"))
        assert (record.sampler.variety, record.sampler.stock) == (variety, False)
        assert "ttsnap group: from seed" in image.info["parameters"]
        given, place = record.image, record.image.place
        assert place is not None
        again = {"search": OneOfGroup(place), "seed": given.first_seed, **how}
        difference = np.asarray(pipe(given.prompt, **again).images[0], int) - np.asarray(image, int)
        assert np.abs(difference).max() <= 1
        found.append((given.seed, place))
    assert sorted(found[:4]) == sorted(found[4:]) == [(11 + i, i % 3) for i in range(4)]


def test_what_cannot_be_is_refused():
    pipe, call = family("sd3")
    cases = {
        "1 of 1 here": {"num_inference_steps": 1},
        "0 of 3 here.*repel:8:0.75": {"sigmas": [0.5, 0.3, 0.2]},
        "Ode is an object": {"kernel": make_kernel("ode", pipe.denoiser(**call))},
        "repel.*one device": {"devices": 2},
        "leave variety out": {"guide": "dps:1", "kernel": "sde"},
    }
    for words, more in cases.items():
        with pytest.raises(ValueError, match=words):
            pipe(PROMPTS[0], search=BestOfN(2), reward=dark, **{**call, "variety": "repel", **more})
    with pytest.raises(ValueError, match="keep seeds apart"):
        pipe.engine(
            dark, network=SharedDenoiser(pipe.denoiser(**call)), variety="repel:2:0.75", **call
        )


def test_what_coupling_takes_is_counted():
    """Of each token a product with every token of the group, at each attention and in both halves
    of guidance."""
    pipe, call = upgrade(FAMILIES["sd3"].build()), FAMILIES["sd3"].call
    engine = pipe.engine(dark, variety="repel:3:0.75", **call)
    net, price, attentions, halves = engine.denoiser.net, engine.price, 2, 2
    engine.denoiser.encode(PROMPTS)
    tokens = (
        engine.denoiser.init_latents([seeded(0)]).shape[-2:].numel() // net.config.patch_size**2
    )
    width = net.get_submodule(ENDS["sd3"][0]).in_features
    assert price.flops.coupled == 2 * attentions * halves * tokens * 3 * tokens * width
    plain = pipe.engine(dark, **call).price
    assert price.flops.nfe == plain.flops.nfe
