"""Stable Diffusion, SDXL and PixArt-Sigma: call arguments against the stock call, and what is special to them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ttsnap import BestOfN
from ttsnap.pipelines import upgrade

from ..cover import each_once  # noqa: TID252
from .tiny import FAMILIES, PIXART_BETAS, STABLE_DIFFUSION_BETAS, autoencoder, jitter, shared

# NumPy's, of what schedulers do with torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")

NAMES = ["sd15", "sdxl", "pixart_sigma"]
PROMPTS = ["a cat", "two dogs in snow"]
STEPS = 3
SEED = 5


def red(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


def arguments(name: str, change: dict[str, Any]) -> dict[str, Any]:
    return {**FAMILIES[name].call, "num_inference_steps": STEPS, **change}


def generator(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_stock(pipe: Any, prompts: list[str] | None, output_type: str, call: dict[str, Any]) -> Tensor:
    """One image a prompt, all from the same seed."""
    n = len(call["prompt_embeds"]) if prompts is None else len(prompts)
    lists = {k: [v] * n if "prompt" in k and isinstance(v, str) else v for k, v in call.items()}
    made: Tensor = pipe(
        prompt=prompts, generator=[generator() for _ in range(n)], output_type=output_type, **lists
    ).images
    return made


def by_search(pipe: Any, prompts: list[str] | None, output_type: str, call: dict[str, Any]) -> Tensor:
    if prompts is None:
        call = {**call, "reward_prompts": PROMPTS[: len(call["prompt_embeds"])]}
    made: Tensor = upgrade(pipe)(
        prompt=prompts, search=BestOfN(1), reward=red, seed=SEED, output_type=output_type, batch_size=2, **call
    ).images
    return made


def assert_equal(pipe: Any, call: dict[str, Any], output_type: str = "latent") -> Tensor:
    """The search finds what the stock pipeline makes; that is returned."""
    expected = by_stock(pipe, PROMPTS, output_type, call)
    assert not expected.isnan().any()
    assert torch.equal(by_search(pipe, PROMPTS, output_type, call), expected)
    return expected


@functools.cache
def unchanged(name: str) -> Tensor:
    return by_stock(shared(name), PROMPTS, "latent", arguments(name, {}))


# --- what the call can change ----------------------------------------------------------------------------------------


def with_scheduler(name: str, make: Callable[..., Any], **options: Any) -> Any:
    betas = PIXART_BETAS if name == "pixart_sigma" else STABLE_DIFFUSION_BETAS
    return FAMILIES[name].build(make(**{**betas, **options}))


def rebuilt(network: Any, **changes: Any) -> Any:
    """The network with other settings and other weights."""
    config = {k: v for k, v in network.config.items() if not k.startswith("_")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return jitter(type(network)(**{**config, **changes}))


BOTH: list[dict[str, Any]] = [
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.0},
    {"negative_prompt": "snow"},
    {"negative_prompt": ["snow", "a red ball"]},
    {"height": 24, "width": 16},
    {"height": None, "width": None},
]
UNET: list[dict[str, Any]] = [
    {"guidance_rescale": 0.7},
    {"clip_skip": 1},
    {"clip_skip": 1, "negative_prompt": "snow"},
    {"guidance_scale": 1.0, "guidance_rescale": 0.7},
]
CHANGES: dict[str, list[dict[str, Any]]] = {
    "sd15": BOTH + UNET,
    "sdxl": [
        *BOTH,
        *UNET,
        {"prompt_2": ["a dog", "a cow"]},
        {"negative_prompt": "snow", "negative_prompt_2": ["rain", "hail"]},
        {"original_size": (64, 48), "crops_coords_top_left": (3, 5), "target_size": (32, 40)},
        {"negative_original_size": (64, 48)},  # without negative_target_size stock reads neither
    ],
    "pixart_sigma": [
        *BOTH,
        {"max_sequence_length": 8},
        {"clean_caption": True},
        {"guidance_scale": 1.0, "max_sequence_length": 40},
    ],
}
# Stock reads these only in some settings, so that the picture stays the same.
IDLE = [{"negative_original_size": (64, 48)}, {"clean_caption": True}]


@pytest.mark.parametrize(("name", "change"), [(n, c) for n in NAMES for c in CHANGES[n]], ids=str)
def test_call_arguments(name: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = shared(name)
    if "clip_skip" in change and not hasattr(pipe.text_encoder, "text_model"):
        # Stock SD reads its last norm there, where transformers 5 no longer has it.
        monkeypatch.setitem(vars(pipe.text_encoder), "text_model", pipe.text_encoder)
    found = assert_equal(pipe, arguments(name, change))
    if change not in IDLE:
        assert found.shape != unchanged(name).shape or not torch.equal(found, unchanged(name))


SCHEDULES: list[tuple[Any, dict[str, Any]]] = [
    (DDIMScheduler, {"eta": 0.5}),
    (DPMSolverMultistepScheduler, {"timesteps": [900, 500, 200, 30]}),
    (EulerDiscreteScheduler, {"sigmas": [12.0, 3.0, 0.5]}),
    (LCMScheduler, {"timesteps": [999, 499]}),
]


@pytest.mark.parametrize(("name", "schedule"), each_once(NAMES, SCHEDULES), ids=str)
def test_schedule_arguments(name: str, schedule: tuple[Any, dict[str, Any]]) -> None:
    scheduler, change = schedule
    assert_equal(with_scheduler(name, scheduler), arguments(name, change))


def test_zero_snr_with_v_prediction() -> None:
    """There is nothing but noise at the first step, so that the estimate there must not be divided by what is left."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe = with_scheduler("sd15", DDIMScheduler, clip_sample=False, **options)
    call = arguments("sd15", {"guidance_rescale": 0.7})
    assert_equal(pipe, call)
    denoiser = upgrade(pipe).denoiser(**call)
    assert denoiser.schedule.alpha[0] == 0
    with torch.no_grad():
        denoiser.encode(["a cat"])
        zero = torch.zeros(1, dtype=torch.long)
        prediction = denoiser.predict(denoiser.init_latents([generator()]), zero, zero)
    torch.testing.assert_close(prediction.x0, -prediction.out)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_scale_of_adapters(name: str) -> None:
    peft = pytest.importorskip("peft")
    pipe = FAMILIES[name].build()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"])
        text = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
        peft.inject_adapter_in_model(unet, pipe.unet)
        peft.inject_adapter_in_model(text, pipe.text_encoder)
    call = arguments(name, {"cross_attention_kwargs": {"scale": 0.3}})
    assert not torch.equal(assert_equal(pipe, call), by_stock(pipe, PROMPTS, "latent", arguments(name, {})))
    assert call["cross_attention_kwargs"] == {"scale": 0.3}


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_distilled_guidance(name: str, scale: float) -> None:
    pipe = with_scheduler(name, LCMScheduler)
    pipe.unet = rebuilt(pipe.unet, time_cond_proj_dim=16)
    call = arguments(name, {"guidance_scale": scale})
    assert upgrade(pipe).denoiser(**call).passes_per_nfe == 1
    assert_equal(pipe, call)


def test_pixart_bins_sizes() -> None:
    pipe = FAMILIES["pixart_sigma"].build()
    pipe.transformer = rebuilt(pipe.transformer, sample_size=32, patch_size=8)
    call = arguments("pixart_sigma", {"height": 200, "width": 264, "num_inference_steps": 1, "guidance_scale": 1.0})
    call["use_resolution_binning"] = True
    images = by_search(pipe, ["a cat"], "pt", call)
    assert images.shape[2:] == (200, 264)
    assert torch.equal(images, by_stock(pipe, ["a cat"], "pt", call))
    twin = upgrade(pipe)
    binned = [twin.denoiser(**{**call, "height": h, "width": w}) for h, w in ((200, 264), (256, 256), (None, None))]
    assert [(d.layout.height, d.layout.width) for d in binned] == [(224, 288), (256, 256), (256, 256)]


# --- embeddings ------------------------------------------------------------------------------------------------------


def embeddings(name: str, pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline makes of the prompts, as arguments of its call."""
    with torch.no_grad():
        if name == "sd15":
            found = pipe.encode_prompt(PROMPTS, "cpu", 1, True, ["snow"] * 2)
            names = ["prompt_embeds", "negative_prompt_embeds"]
        elif name == "sdxl":
            found = pipe.encode_prompt(PROMPTS, negative_prompt=["snow"] * 2)
            names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        else:
            found = pipe.encode_prompt(
                PROMPTS, negative_prompt=["snow"] * 2, max_sequence_length=call["max_sequence_length"]
            )
            names = [
                "prompt_embeds",
                "prompt_attention_mask",
                "negative_prompt_embeds",
                "negative_prompt_attention_mask",
            ]
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_stand_for_their_prompts(name: str) -> None:
    pipe, call = shared(name), arguments(name, {})
    given = embeddings(name, pipe, call)
    stock = {"negative_prompt": None} if name == "pixart_sigma" else {}
    by_embeds = by_search(pipe, None, "pt", {**call, **given})
    assert torch.equal(by_embeds, by_stock(pipe, None, "pt", {**call, **given, **stock}))
    assert torch.equal(by_embeds, by_search(pipe, PROMPTS, "pt", {**call, "negative_prompt": "snow"}))
    if name != "pixart_sigma":  # which asks for both or none
        negative = {k: v for k, v in given.items() if k.startswith("negative")}
        assert torch.equal(by_embeds, by_search(pipe, PROMPTS, "pt", {**call, **negative}))


# --- what is special to SD and SDXL ----------------------------------------------------------------------------------

SIZES = {
    "original_size": (64, 48),
    "target_size": (32, 40),
    "negative_original_size": (16, 24),
    "negative_crops_coords_top_left": (2, 4),
    "negative_target_size": (48, 16),
}


def test_negative_sizes_belong_to_every_row() -> None:
    """Stock mixes them up in batches, but not for a single picture."""
    pipe, call = shared("sdxl"), arguments("sdxl", SIZES)
    singles = [by_stock(pipe, [prompt], "latent", call) for prompt in PROMPTS]
    for prompt, single in zip(PROMPTS, singles, strict=True):
        assert torch.equal(by_search(pipe, [prompt], "latent", call), single)
    batch, stock = by_search(pipe, PROMPTS, "latent", call), by_stock(pipe, PROMPTS, "latent", call)
    expected = torch.cat(singles)
    scale = expected.abs().max()
    assert (batch - expected).abs().max() < 1e-5 * scale
    assert (stock - expected).abs().max() > 1e-4 * scale


def test_vaes_with_a_mean_and_a_deviation() -> None:
    pipe = FAMILIES["sdxl"].build()
    pipe.vae = autoencoder(4, latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[1.0, 0.8, 1.2, 0.9], scaling_factor=0.5)
    assert_equal(pipe, arguments("sdxl", {}), "pt")


def test_half_precision_decodes_in_single() -> None:
    pipe = FAMILIES["sdxl"].build().to(torch.float16)
    call = arguments("sdxl", {})
    assert pipe.vae.config.force_upcast
    with pytest.warns(FutureWarning, match="upcast_vae"):
        expected = by_stock(pipe, PROMPTS, "pt", call)
    images = by_search(pipe, PROMPTS, "pt", call)
    assert torch.equal(images, expected)
    assert images.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16


class Watermark:
    def apply_watermark(self, images: Tensor) -> Tensor:
        return (images + 0.25).clamp(-1, 1).cpu()


def test_the_watermark_is_on_the_picture() -> None:
    pipe, call = FAMILIES["sdxl"].build(), arguments("sdxl", {})
    plain = by_search(pipe, PROMPTS, "pt", call)
    pipe.watermark = Watermark()
    assert not torch.equal(assert_equal(pipe, call, "pt"), plain)


def test_flagged_pictures_are_black() -> None:
    """As by the stock pipeline."""

    def extractor(pictures: Any, return_tensors: str) -> Any:
        values = SimpleNamespace(pixel_values=torch.zeros(len(pictures)))
        return SimpleNamespace(to=lambda device: values)

    def checker(images: Tensor, clip_input: Tensor) -> tuple[Tensor, list[bool]]:
        flagged = [i % 2 == 1 for i in range(len(images))]
        return torch.stack([x * (not f) for x, f in zip(images, flagged, strict=True)]), flagged

    pipe, call = FAMILIES["sd15"].build(), arguments("sd15", {})
    vars(pipe).update(safety_checker=checker, feature_extractor=extractor)
    images = assert_equal(pipe, call, "pt")
    assert images[0].max() > 0
    assert images[1].max() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("real_flops")
def test_previews_by_a_tiny_vae(name: str) -> None:
    pipe = upgrade(FAMILIES[name].build())
    pipe.preview_vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    ).eval()
    denoiser = pipe.denoiser(**arguments(name, {}))
    with torch.no_grad():
        denoiser.encode(["a cat"])
        latents = denoiser.init_latents([generator()])
        expected = pipe.image_processor.postprocess(pipe.preview_vae.decode(latents).sample, output_type="pt")
        assert torch.equal(denoiser.preview(latents), expected)
    assert denoiser.costs().preview > 0


# --- FLOPs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "guidance_scale"), each_once(NAMES, [1.0, 5.0]))
@pytest.mark.usefixtures("real_flops")
def test_flops_are_those_of_a_call(name: str, guidance_scale: float, caplog: pytest.LogCaptureFixture) -> None:
    pipe = FAMILIES[name].build()
    denoiser = upgrade(pipe).denoiser(**arguments(name, {"guidance_scale": guidance_scale}))
    calls: list[int] = []
    hook = getattr(pipe, denoiser.network).register_forward_pre_hook(lambda *_: calls.append(1))
    with caplog.at_level(logging.DEBUG, logger="ttsnap"):
        predict, decode, *_ = denoiser.costs()
    hook.remove()
    assert not calls
    assert "counted by a real call" not in caplog.text
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser.encode(["a"])
        before = counter.get_total_flops()
        x, zero = denoiser.init_latents([generator()]), torch.zeros(1, dtype=torch.long)
        denoiser.predict(x, zero, zero)
        middle = counter.get_total_flops()
        denoiser.decode(x)
    assert predict == middle - before
    assert decode == counter.get_total_flops() - middle
    assert predict > 1e6


@pytest.mark.usefixtures("real_flops")
def test_flops_depend_on_the_length_of_the_text() -> None:
    pipe = upgrade(FAMILIES["pixart_sigma"].build())
    short, long = (pipe.denoiser(**arguments("pixart_sigma", {"max_sequence_length": n})).costs().nfe for n in (8, 64))
    assert short < long


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sd15", {"eta": 0.5}, "PNDMScheduler takes no eta"),
        ("sd15", {"timesteps": [900, 100]}, "does not support custom"),
        ("sd15", {"timesteps": [900, 100], "sigmas": [3.0, 1.0]}, "Only one of"),
        ("sd15", {"height": 31}, "divisible by 8"),
        ("sd15", {"num_inference_steps": 0}, "at least 1"),
        ("sd15", {"negative_prompt": ["snow"]}, "negative_prompt has 1 entries, but there are 2 prompts"),
        ("sd15", {"ip_adapter_image": object()}, "image prompts are not supported"),
        ("sd15", {"latents": torch.zeros(1)}, "latents= cannot be used"),
        ("sd15", {"negative_prompt": "snow", "negative_prompt_embeds": torch.zeros(2, 77, 32)}, "Cannot forward both"),
        ("sdxl", {"denoising_end": 0.8}, "denoising_end"),
        ("sdxl", {"negative_prompt_embeds": torch.zeros(2, 77, 64)}, "negative_pooled_prompt_embeds"),
        ("sdxl", {"callback_on_step_end": print}, "use on_event"),
        ("pixart_sigma", {"use_resolution_binning": True}, "sample size 256, 128, 64, 32, this one has 8"),
        ("pixart_sigma", {"callback": print}, "callback"),
        ("pixart_sigma", {"negative_prompt": ["snow"]}, "negative_prompt has 1 entries, but there are 2 prompts"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_bad_input_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    pipe = shared(name)
    calls: list[int] = []
    hook = getattr(pipe, "unet" if name != "pixart_sigma" else "transformer").register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    with pytest.raises(ValueError, match=message):
        by_search(pipe, PROMPTS, "pt", arguments(name, change))
    hook.remove()
    assert not calls


@pytest.mark.parametrize("name", NAMES)
def test_schedulers_for_flows_are_refused(name: str) -> None:
    """The stock call fails with them, too."""
    pipe = FAMILIES[name].build(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler cannot be used with this pipeline"):
        upgrade(pipe).denoiser(**arguments(name, {}))


def test_embeddings_need_their_masks() -> None:
    with pytest.raises(ValueError, match="prompt_attention_mask"):
        by_search(
            shared("pixart_sigma"),
            None,
            "pt",
            arguments("pixart_sigma", {"prompt_embeds": torch.zeros(2, 8, 32)}),
        )
