"""Searches by suspended calls: winners beside stock calls, ledgers, threads, refusals."""

from __future__ import annotations

import copy
import gc
import threading
from collections import Counter
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.pipelines import tiny as families
from ttsnap import search
from ttsnap.algorithms import make_algorithm
from ttsnap.loop.budget import Budget
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls import frame
from ttsnap.pipelines.calls.parts import changed
from ttsnap.pipelines.calls.parts import processors as all_processors
from ttsnap.pipelines.calls.pictures import images_of
from ttsnap.pipelines.suspended import NAME
from ttsnap.sampling.rng import seeded

from .tiny import NAMES, call_of, stock

PROMPTS = ["a fox", "two red hens"]


def reward(images, prompts):
    return [float(image.flatten()[::3].mean()) for image in images]


def found(pipe, prompts, **how):
    asked = {
        "search": "ttsnap",
        "reward": reward,
        "seed": 3,
        "budget": "4images",
        "output_type": "pt",
        **how,
    }
    return pipe(prompt=prompts, **asked)


def pictures(out):
    made = out.images if hasattr(out, "images") else out.frames
    return made


def alone(pipe, prompt, seed, **call):
    """What the stock call makes of a seed."""
    return images_of(pipe(prompt=prompt, generator=seeded(seed), output_type="pt", **call))


def processors(parts):
    return all_processors(
        {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    )


@pytest.mark.parametrize("name", NAMES)
def test_winners_are_what_the_stock_call_makes_of_their_seeds(name):
    pipe, call = stock(name), call_of(name)
    before = processors(pipe.components)
    out = found(upgrade(pipe), PROMPTS, **call)
    for prompt, result, made in zip(PROMPTS, out.search, pictures(out), strict=True):
        assert torch.allclose(made, alone(pipe, prompt, result.images[0].seed, **call), atol=1e-5)
    assert changed(before, processors(pipe.components)) == {}


def test_a_video_comes_with_its_sound_which_estimates_do_without():
    pipe, call = stock("LTX2ImageToVideoPipeline"), call_of("LTX2ImageToVideoPipeline")
    twin = upgrade(pipe)
    out = found(twin, PROMPTS[:1], budget="2images", **call)
    generator = seeded(out.search[0].best.seed)
    made = pipe(prompt=PROMPTS[0], generator=generator, output_type="pt", **call)
    assert torch.allclose(out.frames, made.frames, atol=1e-5)
    assert torch.allclose(out.audio, made.audio, atol=1e-5)
    assert made.audio.std() > 0.01
    denoiser = twin.denoiser(**call)
    # so that frames go on, where the call puts the picture before the others
    assert denoiser.rehearsed.fields.late
    denoiser.encode(PROMPTS[:1])
    latents = denoiser.init_latents([seeded(0)])
    denoiser.decode(latents)
    assert denoiser.hub.calls["vocoder"] == denoiser.hub.calls["audio_vae"] == 0
    before = denoiser.hub.calls["vae"]
    denoiser.returned(latents, torch.tensor(0), "pt")
    assert (denoiser.hub.calls["vocoder"], denoiser.hub.calls["vae"]) == (1, before + 1)


def test_rows_that_go_alone_are_equal_to_the_last_bit_and_no_thread_is_left():
    pipe, call = stock("PixArtAlphaPipeline"), call_of("PixArtAlphaPipeline")
    out = found(upgrade(pipe), PROMPTS[:1], batch_size=1, decode_batch_size=1, **call)
    assert torch.equal(
        pictures(out)[0], alone(pipe, PROMPTS[0], out.search[0].images[0].seed, **call)
    )
    del out
    gc.collect()
    assert [thread for thread in threading.enumerate() if thread.name == NAME] == []


def test_the_ledger_counts_what_networks_answer_and_prices_are_those_of_the_stock_call():
    call = {**families.FAMILIES["sdxl"].call, "num_inference_steps": 4}
    pipe = families.shared("sdxl")
    engine = upgrade(pipe).engine(reward, **call)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as whole:
        alone(pipe, PROMPTS[0], 0, **call)
    network = whole.get_flop_counts()["UNet2DConditionModel"]
    assert engine.price.passes_per_nfe == 2
    assert 4 * engine.price.flops.nfe == pytest.approx(sum(network.values()), rel=0.02)
    results = search(PROMPTS, make_algorithm("ttsnap"), engine, Budget(nfe=17), seed=1)
    assert engine.denoiser.hub.rows["unet"] == sum(result.spent.nfe for result in results)


def test_joining_is_tried_and_images_stay_apart_where_a_network_mixes_them():
    pag, plain = stock("StableDiffusionPAGPipeline"), families.shared("sd15")
    size = {**families.SIZE, "num_inference_steps": 4}
    mixing = copy.copy(plain)
    mixing.unet = copy.deepcopy(plain.unet)
    mixing.unet.conv_out.register_forward_hook(lambda net, args, out: out + out.mean(0))
    calls = Counter[str]()
    for name, pipe in (
        ("pag", upgrade(pag)),
        ("plain", upgrade(plain)),
        ("mixing", upgrade(mixing)),
    ):
        denoiser = pipe.denoiser(**size)
        denoiser.encode([PROMPTS[0]])
        x = denoiser.init_latents([seeded(seed) for seed in range(3)])
        with torch.no_grad():
            for _ in range(2):
                denoiser.predict(x, torch.zeros(3).long(), torch.zeros(3).long())
                denoiser.decode(x)
        calls[name] = denoiser.hub.calls["unet"]
        assert denoiser.hub.apart == ({"unet"} if name == "mixing" else set())
        # Three together, two of them apart; then all three.
        assert denoiser.hub.calls["vae"] == 1 + 2 + 1
    assert calls == {"pag": 1 + 2 + 1, "plain": 1 + 2 + 1, "mixing": 1 + 1 + 3 + 3}
    later = pipe.denoiser(**size)
    later.encode([PROMPTS[0]])
    with torch.no_grad():
        later.predict(x, torch.zeros(3).long(), torch.zeros(3).long())
    assert (later.hub.apart, later.hub.calls["unet"]) == ({"unet"}, 3), "known from the first"


class Waits(TorchDispatchMode):
    """Counts reads of values, for which a device is waited for, of the thread that enters it."""

    counts: ClassVar = Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_steps_wait_for_the_device_no_more_than_those_of_stock_calls(name, monkeypatch):
    program = frame._program

    def watched(*args):
        with Waits():
            return program(*args)

    monkeypatch.setattr(frame, "_program", watched)
    pipe, call = families.shared(name), {**families.FAMILIES[name].call, "num_inference_steps": 4}
    denoiser = upgrade(pipe).denoiser(**call)
    denoiser.encode(PROMPTS[:1])
    x, cond = denoiser.init_latents([seeded(seed) for seed in range(3)]), torch.zeros(3).long()
    with torch.no_grad(), Waits():
        for k in range(4):
            step = torch.full((3,), k)
            if k == 2:  # before it, joining is tried, and what frames keep is compared
                Waits.counts.clear()
            x, _ = denoiser.kernel.step(
                x, denoiser.predict(x, step, cond), step, [(0, 0, k)] * 3, [None] * 3
            )
        ours = Waits.counts.total()
        Waits.counts.clear()
        pipe(prompt=PROMPTS[0], generator=seeded(0), output_type="latent", **call)
    assert ours <= 2 / 4 * Waits.counts.total()


def test_a_preview_vae_decodes_estimates_and_is_priced():
    pipe, call = copy.copy(stock("PixArtAlphaPipeline")), call_of("PixArtAlphaPipeline")
    blocks = len(pipe.vae.config.block_out_channels)
    widths = {f"{side}_block_out_channels": (4,) * blocks for side in ("encoder", "decoder")}
    depths = {f"num_{side}_blocks": (1,) * blocks for side in ("encoder", "decoder")}
    twin = upgrade(pipe)
    twin.preview_vae = diffusers.AutoencoderTiny(latent_channels=4, **widths, **depths).eval()
    out = found(twin, PROMPTS, **call)
    assert out.search[0].spent.cost.previews > 0
    assert torch.allclose(
        pictures(out)[0], alone(pipe, PROMPTS[0], out.search[0].images[0].seed, **call), atol=1e-5
    )
    costs = twin.denoiser(**call).costs()
    assert 0 < costs.preview < costs.decode


def test_searches_from_two_threads_find_what_each_finds_alone():
    twins = {
        name: upgrade(stock(name)) for name in ("StableDiffusionPAGPipeline", "FluxInpaintPipeline")
    }
    ways = {"ttsnap": {}, "smc": {"kernel": "sde", "batch_size": 3, "budget": "8nfe"}}
    asked = [(name, search) for name in twins for search in ways]

    def run(name, search):
        how = {**call_of(name), "search": search, **ways[search]}
        out = found(twins[name], PROMPTS[:1], **how)
        return pictures(out), out.search[0].spent.cost

    expected, made = {each: run(*each) for each in asked}, dict[Any, Any]()
    threads = [
        threading.Thread(target=lambda each=each: made.update({each: run(*each)}), daemon=True)
        for each in asked
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each, (pixels, cost) in expected.items():
        assert torch.allclose(made[each][0], pixels, atol=1e-6), each
        assert made[each][1] == cost, each


def test_the_stock_calls_own_errors_and_what_cannot_be_suspended():
    pipe = upgrade(stock("PixArtAlphaPipeline"))
    with pytest.raises(ValueError, match="divisible by 8"):
        found(pipe, PROMPTS, **{**call_of("PixArtAlphaPipeline"), "height": 17})
    training = copy.copy(stock("PixArtAlphaPipeline"))
    training.text_encoder = copy.copy(training.text_encoder).train()
    try:
        with pytest.raises(ValueError, match="text_encoder"):
            found(upgrade(training), PROMPTS, **call_of("PixArtAlphaPipeline"))
    finally:
        training.text_encoder.eval()
    with pytest.raises(ValueError, match="its seed"):
        found(pipe, PROMPTS, latents=1, **call_of("PixArtAlphaPipeline"))
    inpainting = "Flux2KleinInpaintPipeline"
    with pytest.raises(ValueError, match="leave variety out"):
        found(upgrade(stock(inpainting)), PROMPTS, variety="repel:2:0.5", **call_of(inpainting))


def test_a_call_without_search_is_the_stock_one():
    pipe, call = stock("PixArtAlphaPipeline"), call_of("PixArtAlphaPipeline")
    made = upgrade(pipe)(prompt=PROMPTS[0], generator=seeded(0), output_type="pt", **call).images
    assert torch.equal(made[0], alone(pipe, PROMPTS[0], 0, **call))


def test_pictures_of_prompts_are_their_own_as_tensors_too():
    pipe, call = stock("StableDiffusionImg2ImgPipeline"), call_of("StableDiffusionImg2ImgPipeline")
    images = [torch.full((1, 3, 32, 32), value) for value in (0.2, 0.8)]
    out = found(upgrade(pipe), PROMPTS[:2], **{**call, "image": images})
    for prompt, image, result, made in zip(
        PROMPTS[:2], images, out.search, pictures(out), strict=True
    ):
        own = {**call, "image": image}
        assert torch.allclose(made, alone(pipe, prompt, result.best.seed, **own), atol=1e-5)
