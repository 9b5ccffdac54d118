"""What is particular to videos: frames, two experts, a first frame that is given, and decoders that draw noise."""

from __future__ import annotations

from typing import Any, ClassVar

import diffusers
import pytest
import torch
from diffusers import LTX2Guidance
from PIL import Image
from torchvision.transforms.functional import to_tensor

from ttsnap import BestOfN
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.modular.classic import modular
from ttsnap.pipelines.modular.streams import WITH_SOUND
from ttsnap.pipelines.modular.workflows import workflow_for
from ttsnap.sampling.rng import seeded

from .test_borders import twin
from .test_workflows import bright
from .tiny import CASES, built


def test_a_video_comes_back_as_frames() -> None:
    out = twin("wan")(prompt="a cat", search=BestOfN(2), reward=bright, seed=0, **CASES["wan"].call)
    (video,) = out.frames
    assert len(video) == 5
    assert isinstance(video[0], Image.Image)
    assert video[0].size == (16, 8)
    assert out.search[0].images[0].image.shape == (5, 3, 8, 16)


@pytest.mark.parametrize(("name", "asked", "made"), [("wan", 5, 5), ("ltx", 5, 5), ("ltx", 8, 5)])
def test_frames_are_those_that_the_vae_makes(name: str, asked: int, made: int) -> None:
    denoiser = twin(name).denoiser(**{**CASES[name].call, "num_frames": asked})
    denoiser.encode(["a cat"])
    assert denoiser.frames == made == denoiser.decode(denoiser.init_latents([seeded(0)])).shape[1]


def test_rewards_see_frames_and_the_image_that_is_set_in_motion() -> None:
    class Drift:
        name = "drift"
        needs: ClassVar = {"source"}
        seen: ClassVar[list[Any]] = []

        def __call__(self, images: Any, prompts: Any, level: Any, source: Any) -> Any:
            self.seen.append((images.shape, source))
            return -(images.mean((1, 2, 3)) - source.mean((1, 2, 3))).abs()

    reward, call = Drift(), CASES["wan image2video"].call
    (result,) = twin("wan image2video")(
        prompt="a cat", search=BestOfN(2), reward=reward, frames=3, batch_size=1, seed=0, **call
    ).search
    shown = to_tensor(call["image"]).mean((1, 2))
    for shape, source in reward.seen:
        assert shape == (3, 3, 8, 16)
        torch.testing.assert_close(source.mean((2, 3)), shown.expand(3, 3), atol=1e-5, rtol=0)
    assert result.spent.cost.reward_calls == 2 * 3


def test_rows_of_both_experts_go_apart_in_one_batch() -> None:
    pipe = twin("wan22")
    denoiser = pipe.denoiser(**CASES["wan22"].call)
    denoiser.encode(["a cat", "two dogs in snow"])
    step, cond = torch.tensor([3, 0, 2, 1]), torch.tensor([0, 1, 1, 0])
    x = torch.randn(4, *denoiser.init_latents([seeded(0)]).shape[1:], generator=seeded(1))
    rows: dict[str, int] = {"transformer": 0, "transformer_2": 0}

    def count(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            rows[name] += len(kwargs["hidden_states"])

        return getattr(pipe, name).register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [count(name) for name in rows]
    together = denoiser.predict(x, step, cond).out
    for hook in hooks:
        hook.remove()
    assert (denoiser.schedule.timesteps >= 875).tolist() == [True, True, False, False]
    assert rows == {"transformer": 4, "transformer_2": 4}  # two rows each, with and without the prompt
    alone = torch.cat([denoiser.predict(x[i : i + 1], step[i : i + 1], cond[i : i + 1]).out for i in range(4)])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)


def test_the_guidance_of_a_call_is_that_of_both_experts() -> None:
    denoiser = twin("wan22").denoiser(guidance_scale=2.5, **CASES["wan22"].call)
    assert denoiser.pipe.guider.guidance_scale == denoiser.pipe.guider_2.guidance_scale == 2.5
    pipe = twin("wan22")
    pipe.guider_2 = type(pipe.guider_2)(guidance_scale=1.0)
    with pytest.raises(ValueError, match="one of two experts is guided and the other is not"):
        pipe.denoiser(**CASES["wan22"].call)


def test_the_first_frame_is_held_whatever_the_kernel_draws() -> None:
    denoiser = twin("ltx image2video").denoiser(**CASES["ltx image2video"].call)
    denoiser.encode(["a cat"])
    cond = denoiser.conditions(torch.zeros(2, dtype=torch.long), [3, 4])
    x = denoiser.begin(denoiser.init_latents([seeded(3), seeded(4)]), cond)
    n = x.shape[1] // 2  # two latent frames
    assert not torch.equal(x[0, :n], x[1, :n])  # the VAE samples, by the seed
    x0 = denoiser.predict(x, torch.tensor([0, 2]), cond).x0
    assert torch.equal(x0[:, :n], x[:, :n])
    assert not torch.equal(x0[:, n:], x[:, n:])
    moved = denoiser.apply_mask(x + 1, torch.tensor([1, 4]), cond)
    assert torch.equal(moved[:, :n], x[:, :n])
    assert torch.equal(moved[:, n:], x[:, n:] + 1)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("wan", {"guidance_scale": 1.0}, "fails without guidance; set guidance_scale to more than 1"),
        ("ltx image2video", {"kernel": "sde", "path": "vp"}, "the first frame is held without noise"),
    ],
)
def test_what_a_search_of_videos_cannot_honour_is_refused(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        twin(name)(prompt="a cat", search=BestOfN(1), reward=bright, **CASES[name].call, **given)


def test_decoders_that_mix_in_noise_are_refused() -> None:
    pipe = twin("ltx")
    pipe.vae.register_to_config(timestep_conditioning=True)
    try:
        with pytest.raises(ValueError, match=r"mixes drawn noise .* is 0.05\), .* set decode_noise_scale=0.0"):
            pipe.denoiser(decode_timestep=0.05, **CASES["ltx"].call)
        pipe.denoiser(decode_timestep=0.05, decode_noise_scale=0.0, **CASES["ltx"].call)
    finally:
        pipe.vae.register_to_config(timestep_conditioning=False)


def test_winners_come_with_their_sound() -> None:
    """It is that of the stock pipeline at the winner's seed, to the last bit; rewards see the frames alone."""
    case = CASES["ltx2"]
    out = twin("ltx2")(prompt="a cat", search=BestOfN(2), reward=bright, seed=0, batch_size=1, **case.call)
    (video,) = out.frames
    assert (len(video), video[0].size) == (5, (16, 8))
    call: dict[str, Any] = {"prompt": "a cat", "generator": seeded(out.search[0].best.seed), **case.call}
    audio = built(case.pipeline, case.parts)(output="audio", **call)
    assert torch.equal(out.audio, audio)
    assert audio.std() > 0.01
    assert repr(out).startswith("SearchSoundOutput(1 video, audio=tensor of (1, 2, ")


def test_tokens_of_video_and_sound_make_one_row() -> None:
    denoiser = twin("ltx2").denoiser(**CASES["ltx2"].call)
    denoiser.encode(["a cat"])
    row = denoiser.init_latents([seeded(3)])
    stream = torch.Generator().manual_seed(3)
    video, sound = (torch.randn(shape, generator=stream) for shape in ((1, 4, 3, 4, 8), (1, 2, 5, 2)))
    assert torch.equal(row[:, :96], video.flatten(2).transpose(1, 2))  # 3 x 4 x 8 tokens of 4 channels
    assert torch.equal(row[:, 96:], sound.transpose(1, 2).flatten(2))
    assert denoiser.passes_per_nfe == 4  # with the text, without it, with one block perturbed, with sound apart
    with pytest.raises(ValueError, match="those of latents and audio_latents have 4 and 8 channels"):
        WITH_SOUND.joined([row, torch.cat([row, row], dim=-1)])


def test_each_modality_has_its_guidance() -> None:
    denoiser = twin("ltx2").denoiser(guidance_scale=2.5, **CASES["ltx2"].call)
    assert (denoiser.pipe.guider.guidance_scale, denoiser.pipe.audio_guider.guidance_scale) == (2.5, 7.0)
    pipe = twin("ltx2")
    for name in ("guider", "audio_guider"):
        setattr(pipe, name, LTX2Guidance(guidance_scale=2.0))
    assert pipe.denoiser(**CASES["ltx2"].call).passes_per_nfe == 2
    assert pipe.denoiser(guidance_scale=1.0, **CASES["ltx2"].call).passes_per_nfe == 2  # the sound is guided still


def test_the_path_of_a_kernel_is_that_of_video_and_sound() -> None:
    """On another path at equal signal-to-noise ratio, the estimates are those of the model's own."""
    denoiser = twin("ltx2").denoiser(**CASES["ltx2"].call)
    denoiser.encode(["a cat"])
    x, step, cond = denoiser.init_latents([seeded(3)]), torch.tensor([2]), torch.tensor([0])
    own = denoiser.predict(x, step, cond).x0
    alpha = denoiser.schedule.alpha[2]
    denoiser.convert("vp")
    there = denoiser.predict(x * denoiser.schedule.alpha[2] / alpha, step, cond).x0
    torch.testing.assert_close(there, own, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(own[:, 96:], x[:, 96:], atol=0.1)


def test_videos_of_no_length_and_decoders_that_denoise_are_refused() -> None:
    call = {name: value for name, value in CASES["ltx2"].call.items() if name != "num_frames"}
    with pytest.raises(ValueError, match="give num_frames: without it a network chooses"):
        twin("ltx2").denoiser(**call)
    with pytest.raises(ValueError, match="does not support LTX25ModularPipeline: its decoder is a diffusion model"):
        upgrade(diffusers.LTX25ModularPipeline())


@pytest.mark.parametrize("name", ["wan", "z_image", "ltx"])
def test_in_bfloat16_images_are_those_of_the_stock_pipeline_to_the_bit(name: str) -> None:
    """Latents are in float32 where the loop keeps them so, and lie in memory as its blocks lay them out."""
    case = CASES[name]
    stock = built.__wrapped__(case.pipeline, case.parts).to(torch.bfloat16)
    made = stock(
        prompt="a cat", generator=seeded(2), output_type="pt", output=workflow_for(case.pipeline, case.call).output,
        **case.call,
    )  # fmt: skip
    pipe = upgrade(stock)
    pipe.set_progress_bar_config(disable=True)
    (result,) = pipe(prompt="a cat", search=BestOfN(1), reward=bright, seed=2, **case.call).search
    assert torch.equal(result.images[0].image, made[0].float())


def test_boundaries_are_those_of_the_classic_pipeline_and_other_kinds_of_wan_are_refused() -> None:
    parts = CASES["wan22"].parts().components
    assert modular(diffusers.WanPipeline(**parts, boundary_ratio=0.7)).config.boundary_ratio == 0.7
    with pytest.raises(ValueError, match=r"at a time of its own \(expand_timesteps, as Wan 2.2 TI2V"):
        upgrade(diffusers.WanPipeline(**parts, expand_timesteps=True))
