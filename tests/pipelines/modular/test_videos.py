"""What is particular to videos: frames, two experts, a first frame that is given, and sound."""

from __future__ import annotations

import pytest
import torch
from diffusers import LTX2Guidance
from PIL import Image

from ttsnap import BestOfN
from ttsnap.pipelines import upgrade
from ttsnap.sampling.rng import seeded

from .tiny import CASES, ONE, bright, built, image_of, named, stock, twin


def denoiser(name, **given):
    """Of a case's call, with a prompt encoded."""
    made = twin(name).denoiser(**{**CASES[name].call, **given})
    made.encode(["a cat", "two dogs in snow"])
    return made


@pytest.mark.parametrize(("name", "asked", "made"), [("wan", 5, 5), ("ltx", 5, 5), ("ltx", 8, 5)])
def test_frames_are_those_that_the_vae_makes(name, asked, made):
    call = denoiser(name, num_frames=asked)
    assert call.frames == made == call.decode(call.init_latents([seeded(0)])).shape[1]


def test_rows_of_both_experts_go_apart_in_one_batch():
    call = denoiser("wan22")
    step, cond = torch.tensor([3, 0, 2, 1]), torch.tensor([0, 1, 1, 0])
    x = torch.randn(4, *call.init_latents([seeded(0)]).shape[1:], generator=seeded(1))
    together = call.predict(x, step, cond).out
    assert (call.schedule.timesteps >= 875).tolist() == [True, True, False, False]
    alone = torch.cat(
        [call.predict(x[i : i + 1], step[i : i + 1], cond[i : i + 1]).out for i in range(4)]
    )
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)


def test_the_guidance_of_a_call_is_that_of_both_experts_but_not_that_of_the_sound():
    guided = denoiser("wan22", guidance_scale=2.5).pipe
    assert guided.guider.guidance_scale == guided.guider_2.guidance_scale == 2.5
    guided = denoiser("ltx2", guidance_scale=2.5).pipe
    assert (guided.guider.guidance_scale, guided.audio_guider.guidance_scale) == (2.5, 7.0)
    pipe, call = twin("ltx2"), CASES["ltx2"].call
    pipe.guider = pipe.audio_guider = LTX2Guidance(guidance_scale=2.0)
    assert pipe.denoiser(**call).passes_per_nfe == 2
    # the sound is guided still
    assert pipe.denoiser(guidance_scale=1.0, **call).passes_per_nfe == 2


@pytest.mark.parametrize("name", named(names=["ltx image2video", "ltx2 image2video"]))
def test_the_first_frame_is_held_whatever_the_kernel_draws(name):
    how = {
        "search": "smc",
        "reward": bright,
        "kernel": "sde",
        "seed": 3,
        "output_type": "pt",
        "budget": "2images",
    }
    (result,) = twin(name)(prompt="a cat", **how, **CASES[name].call).search
    moved = (result.best.image - image_of(name, result.best.seed, "a cat")).abs()
    assert moved[0].max() < moved[1:].max()


def test_winners_come_with_their_sound():
    """It is the stock one's at the winner's seed, to the last bit; rewards see frames alone."""
    call = {"prompt": "a cat", **CASES["ltx2"].call}
    out = twin("ltx2")(search=BestOfN(2), reward=bright, seed=0, batch_size=1, **call)
    (video,) = out.frames
    assert (len(video), type(video[0]), video[0].size) == (5, Image.Image, (16, 8))
    audio = stock("ltx2")(output="audio", generator=seeded(out.search[0].best.seed), **call)
    assert torch.equal(out.audio, audio)
    assert audio.std() > 0.01
    assert repr(out).startswith("SearchSoundOutput(1 video, audio=tensor of (1, 2, ")


def test_video_and_sound_are_one_row():
    call = denoiser("ltx2")
    row, stream = call.init_latents([seeded(3)]), seeded(3)
    video, sound = (
        torch.randn(shape, generator=stream) for shape in ((1, 4, 3, 4, 8), (1, 2, 5, 2))
    )
    n = video.numel()
    assert torch.equal(row[:, :n], video.flatten(2).transpose(1, 2).reshape(1, -1))
    assert torch.equal(row[:, n:], sound.transpose(1, 2).reshape(1, -1))
    # with the text, without it, with one block perturbed, with sound apart
    assert call.passes_per_nfe == 4


def test_the_path_of_a_kernel_is_that_of_video_and_sound():
    """On another path at equal signal-to-noise ratio, estimates are those of the model's own."""
    call = denoiser("ltx2")
    x, step, cond = call.init_latents([seeded(3)]), torch.tensor([2]), torch.tensor([0])
    own = call.predict(x, step, cond).x0
    alpha = call.schedule.alpha[2]
    call.convert("vp")
    call.encode(["a cat"])
    there = call.predict(x * call.schedule.alpha[2] / alpha, step, cond).x0
    torch.testing.assert_close(there, own, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["wan", "z_image", "ltx"])
def test_in_bfloat16_images_are_those_of_the_stock_pipeline_to_the_bit(name):
    """Latents are in float32 where the loop keeps them so, and lie in memory as in its blocks."""
    pipe = built.__wrapped__(CASES[name].pipeline, CASES[name].parts).to(torch.bfloat16)
    made = image_of(name, 2, "a cat", pipe)
    (result,) = upgrade(pipe)(prompt="a cat", **ONE, **CASES[name].call).search
    assert torch.equal(result.images[0].image, made.float())
