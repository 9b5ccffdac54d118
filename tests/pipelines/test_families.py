"""Every family against stock diffusers: what each argument of its call does, costs, previews, and what is refused.

tests/pipelines/test_parity.py runs them under many schedulers; what only some do is in test_family_specials.py.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ttsnap import BestOfN, SeedPruning
from ttsnap.pipelines import upgrade

from ..cover import each_once  # noqa: TID252
from .tiny import FAMILIES, PIXART_BETAS, STABLE_DIFFUSION_BETAS, UNGUIDED, jitter, shared

# NumPy's, of what schedulers do with torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")

PROMPTS = ["a cat", "two dogs in snow"]
STEPS, SEED = 3, 5
PACKED = ("flux", "flux_schnell", "qwen_image", "flux2_klein")
"""Latents are packed, so that no VAE decodes them as they are."""
UNETS = ("sd15", "sdxl")


def red(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


def arguments(name: str, change: dict[str, Any]) -> dict[str, Any]:
    """The family's call with this change; `...` leaves an argument at its stock default."""
    call = {**FAMILIES[name].call, "num_inference_steps": STEPS, **change}
    return {key: value for key, value in call.items() if value is not ...}


def generator(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_stock(pipe: Any, prompts: list[str] | None, output_type: str, call: dict[str, Any]) -> Tensor:
    """One image a prompt, all from the same seed."""
    n = len(call["prompt_embeds"]) if prompts is None else len(prompts)
    texts = ("negative_prompt", "prompt_2", "negative_prompt_2")
    lists = {k: [v] * n if k in texts and isinstance(v, str) else v for k, v in call.items()}
    made: Tensor = pipe(
        prompt=prompts, generator=[generator() for _ in range(n)], output_type=output_type, **lists
    ).images
    return made


def by_search(pipe: Any, prompts: list[str] | None, call: dict[str, Any]) -> dict[str, Tensor]:
    """The same, as latents and as images."""
    if prompts is None:
        call = {"reward_prompts": PROMPTS[: len(call["prompt_embeds"])], **call}
    made = upgrade(pipe)(
        prompt=prompts, search=BestOfN(1), reward=red, seed=SEED, output_type="latent", batch_size=2, **call
    )
    return {"latent": made.images, "pt": torch.stack([result.best.image for result in made.search])}


def assert_equal(pipe: Any, call: dict[str, Any]) -> Tensor:
    """The search finds what the stock pipeline makes, to the last digit; its images are returned."""
    found, expected = by_search(pipe, PROMPTS, call)["pt"], by_stock(pipe, PROMPTS, "pt", call)
    assert not expected.isnan().any()
    assert torch.equal(found, expected.float())
    return found


@functools.cache
def unchanged(name: str) -> Tensor:
    return by_search(shared(name), PROMPTS, arguments(name, {}))["pt"]


# --- what the call can change ---------------------------------------------------------------------------------------


def scheduled(make: Callable[..., Any], **options: Any) -> Callable[[str], Any]:
    """A pipeline under another scheduler."""

    def build(name: str) -> Any:
        betas = {"pixart_sigma": PIXART_BETAS, **dict.fromkeys(UNETS, STABLE_DIFFUSION_BETAS)}.get(name, {})
        return FAMILIES[name].build(make(**{**betas, **options}))

    return build


def rebuilt(network: Any, **changes: Any) -> Any:
    """The network with other settings and other weights."""
    config = {k: v for k, v in network.config.items() if not k.startswith("_")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return jitter(type(network)(**{**config, **changes}))


def with_clip_skip(name: str) -> Any:
    pipe = FAMILIES[name].build()
    if not hasattr(pipe.text_encoder, "text_model"):
        # Stock SD reads its last norm there, where transformers 5 no longer has it.
        vars(pipe.text_encoder)["text_model"] = pipe.text_encoder
    return pipe


def with_timestep_scale(name: str) -> Any:
    pipe = FAMILIES[name].build()
    pipe.transformer.register_to_config(timestep_scale=0.5)
    return pipe


def with_variance(name: str) -> Any:
    pipe = FAMILIES[name].build()
    pipe.transformer = rebuilt(pipe.transformer, out_channels=8)
    return pipe


def with_small_bins(name: str) -> Any:
    """The true ones are far too large for a test."""
    pipe = FAMILIES[name].build()
    pipe.image_processor.classify_height_width_bin = lambda height, width, ratios: (64, 32) if ratios else None
    return pipe


Change = dict[str, Any]
Case = Change | tuple[Change, Callable[[str], Any]]
"""Arguments, and another pipeline than the family's tiny one."""
SIGMAS = {"sigmas": [1.0, 0.6, 0.3]}
DYNAMIC = scheduled(FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True)
BOTH: list[Case] = [
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.0},
    {"negative_prompt": "snow"},
    {"negative_prompt": ["snow", "a red ball"]},
    {"height": 24, "width": 16},
    {"height": None, "width": None},
]
UNET: list[Case] = [
    *BOTH,
    {"guidance_rescale": 0.7},
    ({"clip_skip": 1}, with_clip_skip),
    ({"clip_skip": 1, "negative_prompt": "snow"}, with_clip_skip),
    {"guidance_scale": 1.0, "guidance_rescale": 0.7},
    ({"eta": 0.5}, scheduled(DDIMScheduler)),
    ({"timesteps": [900, 500, 200, 30]}, scheduled(DPMSolverMultistepScheduler)),
    ({"sigmas": [12.0, 3.0, 0.5]}, scheduled(EulerDiscreteScheduler)),
    ({"timesteps": [999, 499]}, scheduled(LCMScheduler)),
]
NEGATIVES = {"negative_prompt": ["bad", "dark"], "negative_prompt_2": ["ugly", "worse"]}
CHANGES: dict[str, list[Case]] = {
    "sd15": UNET,
    "sdxl": [
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
        ({"timesteps": [900, 500, 200, 30]}, scheduled(DPMSolverMultistepScheduler)),
    ],
    "sd3": [
        {"guidance_scale": 1.0},
        {"negative_prompt": ["snow", "a red ball"]},
        {"clip_skip": 1},
        {"prompt_2": ["a dog", "a cow"]},
        SIGMAS,
        {"height": 16, "width": 48},
        {"max_sequence_length": 256},
        ({}, DYNAMIC),
        (SIGMAS, DYNAMIC),
        ({"height": 16, "width": 48}, DYNAMIC),
        # As the stock pipeline does, these are never asked to scale their input.
        *[
            ({}, scheduled(each))
            for each in (EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler, LMSDiscreteScheduler)
        ],
    ],
    "flux": [
        {"guidance_scale": 1.5},
        {"true_cfg_scale": 2.0, "negative_prompt": "bad"},
        {"true_cfg_scale": 2.0, **NEGATIVES},
        {"true_cfg_scale": 1.0, "negative_prompt": "bad"},
        {"true_cfg_scale": 2.0},
        {"prompt_2": ["a dog", "a house"]},
        SIGMAS,
        {"height": 19, "width": 30},
        {"height": 64, "width": 96},
        {"max_sequence_length": 5},
    ],
    "flux_schnell": [{"guidance_scale": 7.0}, {"true_cfg_scale": 2.0, "negative_prompt": "bad"}],
    "qwen_image": [
        {"true_cfg_scale": 1.0},
        {"negative_prompt": None},
        {"negative_prompt": ["bad", "too dark"]},
        {"guidance_scale": 3.0},
        SIGMAS,
        {"height": 19, "width": 30},
        {"height": 64, "width": 96},
        {"max_sequence_length": 3},
    ],
    "flux2_klein": [
        {"guidance_scale": 1.0},
        SIGMAS,
        {"height": 19, "width": 30},
        {"height": 24, "width": 36},
        {"max_sequence_length": 5},
        {"text_encoder_out_layers": (0,)},
    ],
    "sana": [
        {"guidance_scale": 1.0},
        {"negative_prompt": ["snow", "a red ball"]},
        {"complex_human_instruction": ["Draw well.", "Prompt: "]},
        {"complex_human_instruction": ...},
        {"clean_caption": True},
        {"max_sequence_length": 4},
        {"height": 64, "width": 32},
        ({"use_resolution_binning": True, "height": 40, "width": 24}, with_small_bins),
        ({"use_resolution_binning": True, "height": 64, "width": 32}, with_small_bins),
        ({"timesteps": [900, 500, 100]}, scheduled(DPMSolverMultistepScheduler)),
        (SIGMAS, scheduled(FlowMatchEulerDiscreteScheduler)),
        ({"eta": 0.5}, scheduled(DDIMScheduler, clip_sample=False)),
        ({}, scheduled(EulerDiscreteScheduler)),
        ({}, with_timestep_scale),
        ({}, with_variance),
    ],
    "z_image": [
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0},
        {"negative_prompt": ["snow", "a red ball"]},
        {"cfg_normalization": True},
        {"cfg_normalization": 0.5},
        {"cfg_truncation": 0.3},
        {"cfg_truncation": 0.3, "cfg_normalization": 0.5},
        {"cfg_truncation": None},
        {"cfg_truncation": -1.0},
        # In float32 this time is a little above 0.6.
        (
            {"cfg_truncation": 0.6, "sigmas": [1.0, 0.4, 0.2]},
            scheduled(FlowMatchEulerDiscreteScheduler, shift=1.0),
        ),
        SIGMAS,
        {"height": 24, "width": 16},
        {"max_sequence_length": 4},
    ],
    "lumina2": [
        {"guidance_scale": 1.0},
        {"negative_prompt": ["snow", "a red ball"]},
        {"cfg_trunc_ratio": 0.5},
        {"cfg_trunc_ratio": 0.7, **SIGMAS},
        {"cfg_trunc_ratio": 0.0},
        {"cfg_normalization": False},
        {"cfg_normalization": False, "cfg_trunc_ratio": 0.25},
        SIGMAS,
        {"system_prompt": ..., "max_sequence_length": 200},
        {"height": 48, "width": 32},
        {"max_sequence_length": 8},
    ],
}
# Stock reads these only in some settings, so that the picture stays the same.
IDLE: list[Change] = [
    {"negative_original_size": (64, 48)},
    {"clean_caption": True},
    {"true_cfg_scale": 1.0, "negative_prompt": "bad"},
    {"true_cfg_scale": 2.0},
    {"guidance_scale": 3.0},
    {"guidance_scale": 7.0},
    {"height": 19, "width": 30},  # which are rounded down
    {"cfg_truncation": None},
]


def each_case() -> list[Any]:
    found = []
    for name, cases in CHANGES.items():
        for number, case in enumerate(cases):
            change, build = case if isinstance(case, tuple) else (case, shared)
            marks = [pytest.mark.slow] if name == "sdxl" and case in UNET else []  # sd15 has the same
            found.append(pytest.param(name, change, build, id=f"{name}-{number}-{'-'.join(change)}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "change", "build"), each_case())
def test_an_argument_does_what_it_does_in_the_stock_call(name: str, change: Change, build: Any) -> None:
    found = assert_equal(build(name), arguments(name, change))
    if change and change not in IDLE:
        assert found.shape != unchanged(name).shape or not torch.equal(found, unchanged(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_returns_what_the_stock_call_returns(name: str) -> None:
    stock = FAMILIES[name].build()
    twin, call = upgrade(stock), {**arguments(name, {}), "prompt": "a cat"}
    search: dict[str, Any] = {"search": SeedPruning(4, (0.5,), steps=(1,)), "reward": red, "seed": 0}
    expected = stock(**call, generator=generator(1), output_type="pt")
    assert torch.equal(twin(**call, generator=generator(1), output_type="pt").images, expected.images)
    latent = twin(**call, **search, output_type="latent")
    assert isinstance(latent, type(expected))
    again = stock(**call, generator=generator(latent.search[0].best.seed), output_type="latent").images
    torch.testing.assert_close(latent.images, again, atol=1e-4, rtol=1e-4)
    twin.enable_model_cpu_offload(device="cpu")
    moved = twin(**call, **search, output_type="pt")
    assert torch.equal(moved.images[0], latent.search[0].best.image)


@pytest.mark.parametrize("name", ["qwen_image", "flux2_klein"])  # of others tests/gpu tells
def test_rounding_in_half_precision_is_the_stock_one(name: str) -> None:
    assert_equal(FAMILIES[name].build().to(torch.bfloat16), arguments(name, {}))


# The option that holds the scale of adapters, and the parts beside the network that have some.
SCALES = {
    "sd15": ("cross_attention_kwargs", ("text_encoder",)),
    "sdxl": ("cross_attention_kwargs", ("text_encoder",)),
    "flux": ("joint_attention_kwargs", ("text_encoder", "text_encoder_2")),
    "z_image": ("joint_attention_kwargs", ()),
    "sana": ("attention_kwargs", ("text_encoder",)),
    **dict.fromkeys(("qwen_image", "flux2_klein", "lumina2"), ("attention_kwargs", ())),
}


@pytest.mark.parametrize("name", SCALES)
def test_the_scale_of_adapters(name: str) -> None:
    pipe, (option, others) = FAMILIES[name].build(), SCALES[name]
    network, targets = "unet" if name in UNETS else "transformer", ["to_q", "to_v", "q_proj", "v_proj", "q", "v"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in (network, *others):
            config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
            peft.inject_adapter_in_model(config, getattr(pipe, module))
    call = arguments(name, {option: {"scale": 0.5}})
    half, full = assert_equal(pipe, call), by_search(pipe, PROMPTS, arguments(name, {}))["pt"]
    assert not torch.allclose(half, full, atol=1e-4)
    assert call[option] == {"scale": 0.5}


# --- embeddings -----------------------------------------------------------------------------------------------------

POOLED = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
GIVES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("sdxl", "sd3"), POOLED),
    **dict.fromkeys(("sd15", "z_image"), POOLED[:2]),
    **dict.fromkeys(("pixart_sigma", "sana", "lumina2"), MASKED),
}
"""What encode_prompt gives, as the call names it; that of the others is asked once for each kind of prompt."""
BESIDE = {"flux": "{}pooled_prompt_embeds", "qwen_image": "{}prompt_embeds_mask"}
ENCODED = ("max_sequence_length", "text_encoder_out_layers", "system_prompt", "complex_human_instruction")


def embeddings(name: str, pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline makes of the prompts and of the call's negative ones, as arguments of its call."""
    options, negative = {k: call[k] for k in ENCODED if k in call}, call.get("negative_prompt")
    with torch.no_grad():
        if name in GIVES:
            first: tuple[Any, ...] = {"sd15": ("cpu", 1, True), "sd3": (None, None)}.get(name, ())
            found = pipe.encode_prompt(PROMPTS, *first, negative_prompt=negative, **options)
            return dict(zip(GIVES[name], found, strict=True))
        given, texts = {}, {"": PROMPTS, "negative_": [""] * 2 if name == "flux2_klein" else negative}
        for prefix, prompts in texts.items():
            if prompts is not None:
                found = pipe.encode_prompt(prompt=prompts, **options)
                given[f"{prefix}prompt_embeds"] = found[0]
                if name in BESIDE:
                    given[BESIDE[name].format(prefix)] = found[1]
    return given


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *[(name, {"negative_prompt": ["snow", "rain"]}) for name in GIVES],
        ("flux", {}),
        ("flux", {"true_cfg_scale": 2.0, "negative_prompt": ["bad", "bad"]}),
        ("qwen_image", {"negative_prompt": ["bad", "bad"]}),
        ("qwen_image", {"negative_prompt": None}),
        ("flux2_klein", {}),
    ],
    ids=str,
)
def test_embeddings_stand_for_their_prompts(name: str, change: Change) -> None:
    pipe, call = shared(name), arguments(name, change)
    given = embeddings(name, pipe, call)
    bare = {k: v for k, v in call.items() if k != "negative_prompt"}
    found, expected = by_search(pipe, None, {**bare, **given}), by_search(pipe, PROMPTS, call)
    assert torch.equal(found["pt"], expected["pt"])
    stock = {"negative_prompt": None} if name == "pixart_sigma" else {}
    if name not in ("z_image", "sana", "lumina2"):
        assert torch.equal(found["latent"], by_stock(pipe, None, "latent", {**bare, **given, **stock}))
    if name in UNETS:  # where either may be given alone
        negative = {k: v for k, v in given.items() if k.startswith("negative")}
        assert torch.equal(found["pt"], by_search(pipe, PROMPTS, {**bare, **negative})["pt"])


# --- FLOPs and previews ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "guided"), each_once(list(FAMILIES), [True, False]))
@pytest.mark.usefixtures("real_flops")
def test_flops_are_counted_without_a_call_and_are_those_of_one(
    name: str, guided: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = FAMILIES[name].build()
    denoiser = upgrade(pipe).denoiser(**arguments(name, {} if guided else UNGUIDED[name]))
    calls: list[int] = []
    hook = getattr(pipe, denoiser.network).register_forward_pre_hook(lambda *_: calls.append(1))
    with caplog.at_level(logging.DEBUG, "ttsnap"):
        predict, decode, *_ = denoiser.costs()
    hook.remove()
    assert not calls
    assert "real call" not in caplog.text
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser.encode(["a red circle and a blue square"])
        before = counter.get_total_flops()
        x, zero = denoiser.init_latents([generator()]), torch.zeros(1, dtype=torch.long)
        denoiser.predict(x, zero, zero)
        middle = counter.get_total_flops()
        denoiser.decode(x)
    assert predict == middle - before > 0
    assert decode == counter.get_total_flops() - middle > 0
    assert denoiser.passes_per_nfe == 1 + (guided and name not in ("flux", "flux_schnell"))


@pytest.mark.usefixtures("real_flops")
def test_flops_depend_on_the_length_of_the_text() -> None:
    pipe = upgrade(FAMILIES["pixart_sigma"].build())
    short, long = (pipe.denoiser(**arguments("pixart_sigma", {"max_sequence_length": n})).costs().nfe for n in (8, 64))
    assert short < long


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PACKED])
def test_previews_are_decoded_by_the_scale_of_their_own_vae(name: str) -> None:
    """tests/pipelines/test_support.py sees that packed latents are unpacked for it."""
    twin = upgrade(FAMILIES[name].build())
    sizes = {f"{part}_block_out_channels": (4, 4) for part in ("encoder", "decoder")}
    blocks = {f"num_{part}_blocks": (1, 1) for part in ("encoder", "decoder")}
    channels = 16 if name == "z_image" else 4
    twin.preview_vae = AutoencoderTiny(latent_channels=channels, **sizes, **blocks).eval()
    denoiser = twin.denoiser(**arguments(name, {}))
    with torch.no_grad():
        denoiser.encode(PROMPTS)
        x = denoiser.init_latents([generator(), generator(1)])
        expected = (twin.preview_vae.decode(x).sample / 2 + 0.5).clamp(0, 1)
        assert torch.equal(denoiser.preview(x), expected)


# --- refused --------------------------------------------------------------------------------------------------------

EMBEDS = torch.zeros(2, 4, 32)
UNMATCHED = {"negative_prompt_embeds": EMBEDS[:, 1:], "negative_pooled_prompt_embeds": EMBEDS}
NO_MU = UniPCMultistepScheduler(use_flow_sigmas=True)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *[(name, {"num_inference_steps": 0}, "at least 1") for name in FAMILIES],
    *[(name, {"latents": torch.zeros(1)}, "latents=") for name in FAMILIES],
    *[(name, {"callback_on_step_end": print}, "on_event") for name in FAMILIES if name not in ("sd15", "pixart_sigma")],
    *[
        (name, {"negative_prompt": ["snow"]}, "1 entries")
        for name in FAMILIES
        if name not in ("flux_schnell", "flux2_klein")
    ],
    *[(name, {"height": 31}, "divisible") for name in ("sd15", "sd3", "sana", "z_image", "lumina2")],
    ("sd15", {"eta": 0.5}, "no eta"),
    ("sd15", {"timesteps": [900, 100]}, "custom"),
    ("sd15", {"timesteps": [900, 100], "sigmas": [3.0, 1.0]}, "Only one"),
    *[("sd15", {name: torch.zeros(1, 3, 8, 8)}, name) for name in ("ip_adapter_image", "image", "mask_image")],
    ("sdxl", {"ip_adapter_image_embeds": torch.zeros(1, 3, 8, 8)}, "ip_adapter_image_embeds"),
    ("sd3", {"ip_adapter_image": torch.zeros(1, 3, 8, 8)}, "ip_adapter_image"),
    ("sd15", {"negative_prompt": "snow", "negative_prompt_embeds": torch.zeros(2, 77, 32)}, "both"),
    ("sdxl", {"denoising_end": 0.8}, "denoising_end"),
    ("sdxl", {"negative_prompt_embeds": torch.zeros(2, 77, 64)}, "negative_pooled_prompt_embeds"),
    ("pixart_sigma", {"use_resolution_binning": True}, "sample size 256, 128, 64, 32"),
    ("pixart_sigma", {"callback": print}, "callback"),
    ("pixart_sigma", {"prompt_embeds": torch.zeros(2, 8, 32)}, "prompt_attention_mask"),
    ("sd3", {"skip_guidance_layers": [1]}, "skip-layer"),
    ("sd3", {"scheduler": IPNDMScheduler()}, "IPNDMScheduler"),
    ("flux", {"prompt_embeds": EMBEDS}, "pooled_prompt_embeds"),
    ("flux", {"prompt_embeds": EMBEDS, "pooled_prompt_embeds": EMBEDS, "prompt_2": "a dog"}, "both"),
    ("flux", {"negative_prompt": "bad", "negative_prompt_embeds": EMBEDS}, "both"),
    ("flux", {"max_sequence_length": 513}, "512"),
    (
        "flux",
        {"true_cfg_scale": 2.0, "prompt_embeds": EMBEDS, "pooled_prompt_embeds": EMBEDS, **UNMATCHED},
        "same shape",
    ),
    ("flux", {"ip_adapter_image": "picture"}, "ip_adapter_image"),
    ("flux", {"negative_ip_adapter_image": "picture"}, "negative_ip_adapter_image"),
    ("qwen_image", {"negative_prompt": "bad", "negative_prompt_embeds": EMBEDS}, "both"),
    ("qwen_image", {"max_sequence_length": 1025}, "1024"),
    ("flux2_klein", {"image": "picture"}, "image"),
    ("sana", {"use_resolution_binning": True}, "sample_size 8"),
    ("sana", {"negative_prompt": "snow", "negative_prompt_embeds": torch.zeros(2, 16, 8)}, "both"),
    ("sana", {"sigmas": [1.0, 0.5]}, "custom"),
    ("sana", {"timesteps": [900, 100]}, "timesteps"),
    ("z_image", {"prompt_embeds": [torch.zeros(3, 16)] * 2}, "negative_prompt_embeds"),
    ("z_image", {"scheduler": NO_MU}, "sigmas, mu"),
    ("lumina2", {"max_sequence_length": 513}, "512"),
    ("lumina2", {"prompt_embeds": torch.zeros(2, 3, 8)}, "prompt_attention_mask"),
    # The stock calls fail with these, too.
    *[(n, {"scheduler": FlowMatchEulerDiscreteScheduler()}, "FlowMatchEuler") for n in (*UNETS, "pixart_sigma")],
    *[(n, {"scheduler": FlowMatchHeunDiscreteScheduler()}, "FlowMatchHeun|custom") for n in PACKED],
]


@pytest.mark.parametrize(
    ("name", "change", "said"), REFUSED, ids=[f"{n}-{'-'.join(change)}-{said}" for n, change, said in REFUSED]
)
def test_what_cannot_be_honoured_is_refused_before_any_compute(name: str, change: dict[str, Any], said: str) -> None:
    pipe = FAMILIES[name].build(change["scheduler"]) if "scheduler" in change else shared(name)
    if "use_resolution_binning" in change and name == "sana":
        pipe = FAMILIES[name].build()
        pipe.transformer.register_to_config(sample_size=8)
    calls: list[int] = []
    hook = getattr(pipe, "unet" if name in UNETS else "transformer").register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    prompts = None if "prompt_embeds" in change else PROMPTS
    call = arguments(name, {key: value for key, value in change.items() if key != "scheduler"})
    try:
        with pytest.raises(ValueError, match=said):
            by_search(pipe, prompts, call)
    finally:
        hook.remove()
    assert not calls
