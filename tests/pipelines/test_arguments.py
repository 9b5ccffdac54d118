"""What every argument of a call does, costs, previews and is refused for, against the stock call.

tests/pipelines/test_parity.py runs many schedulers.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import diffusers
import peft
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ttsnap import BestOfN
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls.hub import Hub

from ..cover import each_once  # noqa: TID252
from .tiny import (
    FAMILIES,
    PIXART_BETAS,
    STABLE_DIFFUSION_BETAS,
    TOLERANCE,
    UNGUIDED,
    autoencoder,
    jitter,
    shared,
)

# NumPy's, of what schedulers do with torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")

PROMPTS = ["a cat", "two dogs in snow"]
STEPS, SEED = 2, 5
UNETS = ("sd15", "sdxl")
Change = dict[str, Any]
Build = Callable[[str], Any]


def red(images, prompts):
    return images[:, 0].mean((1, 2))


ONE = {"search": BestOfN(1), "reward": red, "seed": SEED, "batch_size": 2}
"""One candidate, the image of its seed."""


def arguments(name, change=None):
    """The family's call with this change; `...` leaves an argument at its stock default."""
    call = {**FAMILIES[name].call, "num_inference_steps": STEPS, **(change or {})}
    return {key: value for key, value in call.items() if value is not ...}


def generator(seed=SEED):
    return torch.Generator().manual_seed(seed)


def relative(ours, expected):
    """The largest error as a share of the largest value; nan where there is one."""
    assert ours.shape == expected.shape
    return float((ours.float() - expected.float()).abs().max() / expected.float().abs().max())


OWN = ("negative_prompt", "prompt_2", "negative_prompt_2")
"""Arguments whose lists have an entry for each prompt, as embeddings have."""


def own(name, value, number):
    """What an argument says of one of several prompts."""
    if name in OWN and isinstance(value, list):
        return value[number]
    if "prompt_embeds" in name or "prompt_attention_mask" in name:
        return value[number : number + 1]
    return value


def by_stock(pipe, prompts, output_type, call):
    """What the stock call makes of each prompt alone, all from the same seed."""
    found = list[Tensor]()
    for number in range(len(call["prompt_embeds"] if prompts is None else prompts)):
        alone = {name: own(name, value, number) for name, value in call.items()}
        if prompts is not None:
            alone["prompt"] = prompts[number]
        found.append(pipe(generator=generator(), output_type=output_type, **alone).images)
    return torch.cat(found)


def by_search(pipe, prompts, call):
    """The same, as latents and as images."""
    if prompts is None:
        call = {"reward_prompts": PROMPTS[: len(call["prompt_embeds"])], **call}
    made = upgrade(pipe)(prompt=prompts, **ONE, output_type="latent", **call)
    assert [result.prompt for result in made.search] == call.get("reward_prompts", prompts)
    return {"latent": made.images, "pt": torch.stack([result.best.image for result in made.search])}


def assert_equal(pipe, call, tolerance=TOLERANCE):
    """The search finds what the stock call makes of each prompt; its images are returned."""
    found, expected = by_search(pipe, PROMPTS, call)["pt"], by_stock(pipe, PROMPTS, "pt", call)
    assert not expected.isnan().any()
    assert relative(found, expected) <= tolerance
    return found


@functools.cache
def unchanged(name):
    return by_search(shared(name), PROMPTS, arguments(name))["pt"]


def scheduled(make, edit=lambda pipe: None, **options):
    """A pipeline under another scheduler, or another edit."""

    def build(name):
        betas = {"pixart_sigma": PIXART_BETAS, **dict.fromkeys(UNETS, STABLE_DIFFUSION_BETAS)}.get(
            name, {}
        )
        pipe = FAMILIES[name].build(None if make is None else make(**{**betas, **options}))
        edit(pipe)
        return pipe

    return build


edited = functools.partial(scheduled, None)


def rebuilt(network, **changes):
    """The network with other settings and other weights."""
    config = {k: v for k, v in network.config.items() if not k.startswith("_")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return jitter(type(network)(**{**config, **changes}))


def binned(pipe):
    """One whose sizes have bins."""
    pipe.transformer = rebuilt(pipe.transformer, sample_size=32, patch_size=8)


def closing(pipe):
    """Its template ends with a text, as the real one, so that an empty prompt has tokens."""
    pipe.prompt_template_encode += "."


def clip_skip(pipe):
    """Stock SD reads its last norm there, where transformers 5 no longer has it."""
    if not hasattr(pipe.text_encoder, "text_model"):
        vars(pipe.text_encoder)["text_model"] = pipe.text_encoder


def small_bins(pipe):
    """The true ones are far too large for a test."""
    pipe.image_processor.classify_height_width_bin = lambda height, width, ratios: (
        (64, 32) if ratios else None
    )


def variance(pipe):
    pipe.transformer = rebuilt(pipe.transformer, out_channels=8)


def distilled(pipe):
    pipe.unet = rebuilt(pipe.unet, time_cond_proj_dim=16)


DISTILLED = scheduled(LCMScheduler, distilled)


def vae_with_mean_and_deviation(pipe):
    means = {"latents_mean": [0.1, -0.2, 0.0, 0.3], "latents_std": [1.0, 0.8, 1.2, 0.9]}
    pipe.vae = autoencoder(4, scaling_factor=0.5, **means)


Case = Change | tuple[Change, Build]
"""Arguments, and another pipeline than the family's tiny one."""
SIGMAS, WORDS = {"sigmas": [1.0, 0.6, 0.3]}, {"negative_prompt": ["snow", "a red ball"]}
TIMES = {"timesteps": [900, 500, 200, 30]}
DYNAMIC = scheduled(FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True)
BINNED = {"use_resolution_binning": True}
BOTH = [
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.0},
    WORDS,
    {"height": None, "width": None},
]
UNET = [
    *BOTH,
    {"guidance_rescale": 0.7},
    {"guidance_scale": 1.0, "guidance_rescale": 0.7},
    ({"clip_skip": 1, "negative_prompt": "snow"}, edited(clip_skip)),
    ({"eta": 0.5}, scheduled(DDIMScheduler)),
    (TIMES, scheduled(DPMSolverMultistepScheduler)),
    ({"sigmas": [12.0, 3.0, 0.5]}, scheduled(diffusers.EulerDiscreteScheduler)),
    ({"timesteps": [999, 499]}, scheduled(LCMScheduler)),
]
NEGATIVES = {"negative_prompt": ["bad", "dark"], "negative_prompt_2": ["ugly", "worse"]}
CHANGES = {
    "sd15": UNET,
    "sdxl": [
        *UNET,
        {
            "prompt_2": ["a dog", "a cow"],
            "negative_prompt": "snow",
            "negative_prompt_2": ["rain", "hail"],
        },
        {"negative_original_size": (64, 48)},  # without negative_target_size stock reads neither
        {
            "original_size": (64, 48),
            "target_size": (32, 40),
            "negative_original_size": (16, 24),
            "negative_crops_coords_top_left": (2, 4),
            "negative_target_size": (48, 16),
        },
        ({}, edited(vae_with_mean_and_deviation)),
    ],
    "pixart_sigma": [
        *BOTH,
        {"max_sequence_length": 8},
        {"clean_caption": True},
        {"guidance_scale": 1.0, "max_sequence_length": 40},
        ({**BINNED, "height": 200, "width": 264, "guidance_scale": 1.0}, edited(binned)),
        (TIMES, scheduled(DPMSolverMultistepScheduler)),
    ],
    "sd3": [
        {"guidance_scale": 1.0},
        {"prompt_2": ["a dog", "a cow"], **WORDS},
        {"clip_skip": 1},
        (SIGMAS, DYNAMIC),
        ({"height": 16, "width": 48}, DYNAMIC),
        # As the stock pipeline does, these are never asked to scale their input.
        ({}, scheduled(diffusers.EulerDiscreteScheduler)),
        ({"guidance_scale": 2.0}, scheduled(diffusers.HeunDiscreteScheduler)),
        ({}, scheduled(diffusers.KDPM2DiscreteScheduler)),
        ({}, scheduled(diffusers.LMSDiscreteScheduler)),
    ],
    "flux": [
        {"true_cfg_scale": 2.0, "negative_prompt": "bad"},
        {"true_cfg_scale": 2.0, **NEGATIVES},
        {"true_cfg_scale": 1.0, "negative_prompt": "bad"},
        {"true_cfg_scale": 2.0},
        {"prompt_2": ["a dog", "a house"]},
        {"height": 19, "width": 30},
        {"height": 64, "width": 96},
    ],
    "flux_schnell": [{"guidance_scale": 7.0}, {"true_cfg_scale": 2.0, "negative_prompt": "bad"}],
    "qwen_image": [
        {"true_cfg_scale": 1.0},
        {"negative_prompt": None},
        (WORDS, edited(closing)),
        {"guidance_scale": 3.0},
        {"height": 19, "width": 30},
        {"height": 64, "width": 96},
        {"max_sequence_length": 3},
    ],
    "flux2_klein": [
        {"guidance_scale": 1.0},
        {"height": 19, "width": 30},
        {"text_encoder_out_layers": (0,)},
    ],
    "sana": [
        {"guidance_scale": 1.0},
        WORDS,
        {"complex_human_instruction": ["Draw well.", "Prompt: "]},
        {"complex_human_instruction": ...},
        {"clean_caption": True},
        {"max_sequence_length": 4},
        ({**BINNED, "height": 40, "width": 24}, edited(small_bins)),
        ({**BINNED, "height": 64, "width": 32}, edited(small_bins)),
        ({"timesteps": [900, 500, 100]}, scheduled(DPMSolverMultistepScheduler)),
        (SIGMAS, scheduled(FlowMatchEulerDiscreteScheduler)),
        ({"eta": 0.5}, scheduled(DDIMScheduler, clip_sample=False)),
        ({}, scheduled(diffusers.EulerDiscreteScheduler)),
        ({}, edited(lambda pipe: pipe.transformer.register_to_config(timestep_scale=0.5))),
        ({}, edited(variance)),
    ],
    "z_image": [
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0},
        WORDS,
        {"cfg_truncation": 0.3, "cfg_normalization": 0.5},
        {"cfg_truncation": None},
        {"cfg_truncation": -1.0},
        {"max_sequence_length": 4},
        # In float32 this time is a little above 0.6.
        (
            {"cfg_truncation": 0.6, "sigmas": [1.0, 0.4, 0.2]},
            scheduled(FlowMatchEulerDiscreteScheduler, shift=1.0),
        ),
    ],
    "lumina2": [
        {"guidance_scale": 1.0},
        WORDS,
        {"cfg_trunc_ratio": 0.7, **SIGMAS},
        {"cfg_trunc_ratio": 0.0},
        {"cfg_normalization": False, "cfg_trunc_ratio": 0.25},
        {"system_prompt": ..., "max_sequence_length": 200},
        {"max_sequence_length": 8},
    ],
}
# Stock reads these only in some settings, so that the picture stays the same.
IDLE = [
    {"negative_original_size": (64, 48)},
    {"clean_caption": True},
    {"true_cfg_scale": 1.0, "negative_prompt": "bad"},
    {"true_cfg_scale": 2.0},
    {"guidance_scale": 3.0},
    {"guidance_scale": 7.0},
    {"cfg_truncation": None},
    {"height": 19, "width": 30},  # which are rounded down
]


def each_case():
    found = []
    for name, cases in CHANGES.items():
        for number, case in enumerate(cases):
            change, build = case if isinstance(case, tuple) else (case, shared)
            # sd15 has the same
            marks = [pytest.mark.slow] if name == "sdxl" and case in UNET else []
            found.append(
                pytest.param(
                    name, change, build, id=f"{name}-{number}-{'-'.join(change)}", marks=marks
                )
            )
    return found


@pytest.mark.parametrize(("name", "change", "build"), each_case())
def test_an_argument_does_what_it_does_in_the_stock_call(name, change, build):
    found = assert_equal(build(name), arguments(name, change))
    if change and change not in IDLE and found.shape == unchanged(name).shape:
        assert relative(found, unchanged(name)) > 10 * TOLERANCE


def readable(pipe, stock):
    """What the stock class offers as properties, where it has a value."""
    names = {
        name for name, _ in inspect.getmembers(stock, lambda member: isinstance(member, property))
    }
    return {
        name: getattr(pipe, name)
        for name in names - {"components", "device", "dtype", "_execution_device"}
        if hasattr(pipe, name)
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_returns_and_leaves_what_the_stock_call_does(name):
    stock = FAMILIES[name].build()
    (twin, other), kind = (upgrade(stock) for _ in range(2)), type(stock)
    call, during = {**arguments(name), "prompt": "a cat"}, list[Any]()
    best = {"search": BestOfN(2), "reward": red, "seed": 0, **call}
    best["on_event"] = lambda _: during.append(readable(twin, kind))
    expected = stock(**call, generator=generator(1), output_type="pt")
    left = readable(stock, kind)
    latent = twin(**best, output_type="latent")
    after = readable(twin, kind)
    assert {name: after[name] or None for name in left} == {
        name: value or None for name, value in left.items()
    }
    assert left.get("num_timesteps", STEPS) >= STEPS
    assert all(seen.get("guidance_scale") == left.get("guidance_scale") for seen in during)
    if "guidance_scale" in left:  # a twin has its own
        assert "guidance_scale" not in readable(other, kind)
    assert torch.equal(
        twin(**call, generator=generator(1), output_type="pt").images, expected.images
    )
    assert isinstance(latent, type(expected))
    again = stock(
        **call, generator=generator(latent.search[0].best.seed), output_type="latent"
    ).images
    assert relative(latent.images, again) <= TOLERANCE
    twin.enable_model_cpu_offload(device="cpu")
    moved = twin(**best, output_type="pt")
    assert relative(moved.images[0], latent.search[0].best.image) <= TOLERANCE


HALF = [("qwen_image", torch.bfloat16), ("flux2_klein", torch.bfloat16), ("sdxl", torch.float16)]


@pytest.mark.parametrize(("name", "dtype"), HALF)  # of others tests/gpu tells
def test_rounding_in_half_precision_is_the_stock_one(name, dtype):
    """SDXL decodes in single precision."""
    pipe = FAMILIES[name].build().to(dtype)
    assert assert_equal(pipe, arguments(name)).dtype == torch.float32
    assert pipe.vae.dtype == dtype
    assert name != "sdxl" or pipe.vae.config.force_upcast


@pytest.mark.parametrize(
    ("name", "change", "build"),
    [
        *[(name, {"guidance_scale": scale}, DISTILLED) for name in UNETS for scale in (1.0, 8.0)],
        ("flux2_klein", {}, edited(lambda pipe: pipe.register_to_config(is_distilled=True))),
    ],
)
def test_networks_that_were_distilled_for_guidance_take_one_pass(name, change, build):
    pipe, call = build(name), arguments(name, change)
    assert upgrade(pipe).denoiser(**call).passes_per_nfe == 1
    assert_equal(pipe, call)


# The option that holds the scale of adapters, and the parts beside the network that have some.
SCALES = {
    **dict.fromkeys(UNETS, ("cross_attention_kwargs", ("text_encoder",))),
    "flux": ("joint_attention_kwargs", ("text_encoder", "text_encoder_2")),
    "z_image": ("joint_attention_kwargs", ()),
    "sana": ("attention_kwargs", ("text_encoder",)),
    **dict.fromkeys(("qwen_image", "flux2_klein", "lumina2"), ("attention_kwargs", ())),
}


@pytest.mark.parametrize("name", SCALES)
def test_the_scale_of_adapters(name):
    pipe, (option, others) = FAMILIES[name].build(), SCALES[name]
    network, targets = (
        "unet" if name in UNETS else "transformer",
        ["to_q", "to_v", "q_proj", "v_proj", "q", "v"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in (network, *others):
            config = peft.LoraConfig(
                r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False
            )
            peft.inject_adapter_in_model(config, getattr(pipe, module))
    call = arguments(name, {option: {"scale": 0.5}})
    half, full = assert_equal(pipe, call), by_search(pipe, PROMPTS, arguments(name))["pt"]
    assert not torch.allclose(half, full, atol=1e-4)
    assert call[option] == {"scale": 0.5}


POOLED = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
MASKED = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)
GIVES = {
    **dict.fromkeys(("sdxl", "sd3"), POOLED),
    **dict.fromkeys(("sd15", "z_image"), POOLED[:2]),
    **dict.fromkeys(("pixart_sigma", "sana", "lumina2"), MASKED),
}
"""What encode_prompt gives, as the call names it; that of the others is asked once for each kind of
prompt."""
BESIDE = {"flux": "{}pooled_prompt_embeds", "qwen_image": "{}prompt_embeds_mask"}
ENCODED = (
    "max_sequence_length",
    "text_encoder_out_layers",
    "system_prompt",
    "complex_human_instruction",
)


def embeddings(name, pipe, call):
    """What the pipeline makes of the prompts and of the call's negative ones, as arguments of its
    call."""
    options, negative = {k: call[k] for k in ENCODED if k in call}, call.get("negative_prompt")
    with torch.no_grad():
        if name in GIVES:
            first = {"sd15": ("cpu", 1, True), "sd3": (None, None)}.get(name, ())
            found = pipe.encode_prompt(PROMPTS, *first, negative_prompt=negative, **options)
            return dict(zip(GIVES[name], found, strict=True))
        given, texts = (
            {},
            {"": PROMPTS, "negative_": [""] * 2 if name == "flux2_klein" else negative},
        )
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
        *[(name, WORDS) for name in (*GIVES, "qwen_image")],
        ("qwen_image", {"negative_prompt": None}),
        ("flux", {}),
        ("flux", {"true_cfg_scale": 2.0, **WORDS}),
        ("flux2_klein", {}),
    ],
    ids=str,
)
def test_embeddings_stand_for_their_prompts(name, change):
    pipe = edited(closing)(name) if name == "qwen_image" else shared(name)
    call = arguments(name, change)
    given = embeddings(name, pipe, call)
    bare = {k: v for k, v in call.items() if k != "negative_prompt"}
    found, expected = by_search(pipe, None, {**bare, **given}), by_search(pipe, PROMPTS, call)
    assert relative(found["pt"], expected["pt"]) <= TOLERANCE
    stock = {"negative_prompt": None} if name == "pixart_sigma" else {}
    if name not in ("z_image", "sana", "lumina2"):
        made = by_stock(pipe, None, "latent", {**bare, **given, **stock})
        assert relative(found["latent"], made) <= TOLERANCE
    if name in UNETS:  # where either may be given alone
        negative = {k: v for k, v in given.items() if k.startswith("negative")}
        alone = by_search(pipe, PROMPTS, {**bare, **negative})
        assert relative(alone["pt"], expected["pt"]) <= TOLERANCE


@pytest.mark.parametrize(("name", "guided"), each_once(list(FAMILIES), [True, False]))
def test_flops_are_counted_without_a_call_and_are_those_of_one(name, guided, caplog):
    pipe = FAMILIES[name].build()
    with caplog.at_level(logging.DEBUG, "ttsnap"):
        denoiser = upgrade(pipe).denoiser(**arguments(name, {} if guided else UNGUIDED[name]))
        predict, decode, *_ = denoiser.costs()
    # That of Lumina 2 reads from its mask how long a text is.
    assert ("real call" in caplog.text) == (name == "lumina2")
    assert not denoiser.hub.calls
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        denoiser.encode(["a red circle and a blue square"])
        x, zero = denoiser.init_latents([generator()]), torch.zeros(1, dtype=torch.long)
        denoiser.predict(x, zero, zero)  # which encodes the prompt
        with FlopCounterMode(display=False) as counter:
            denoiser.predict(x, zero, zero)
            middle = counter.get_total_flops()
            denoiser.decode(x)
    assert predict == middle > 0
    assert decode == counter.get_total_flops() - middle > 0
    assert denoiser.passes_per_nfe == 1 + (guided and name not in ("flux", "flux_schnell"))


def test_the_watermark_is_on_the_picture():
    pipe, call = FAMILIES["sdxl"].build(), arguments("sdxl")
    pipe.watermark = SimpleNamespace(
        apply_watermark=lambda images: (images + 0.25).clamp(-1, 1).cpu()
    )
    made = assert_equal(pipe, call)
    assert relative(made, unchanged("sdxl")) > 10 * TOLERANCE


EMBEDS = torch.zeros(2, 4, 32)
SNOW = {"negative_prompt": "snow"}
GIVEN = {"prompt_embeds": EMBEDS, "pooled_prompt_embeds": EMBEDS}
UNMATCHED = {"negative_prompt_embeds": EMBEDS[:, 1:], "negative_pooled_prompt_embeds": EMBEDS}
FLOW_EULER, FLOW_HEUN = FlowMatchEulerDiscreteScheduler, diffusers.FlowMatchHeunDiscreteScheduler
REFUSED = [
    *[(name, {"num_inference_steps": 0}, "at least 1, got 0") for name in ("sd15", "sana")],
    *[(name, {"negative_prompt": ["snow"]}, "1 entries") for name in ("sd15", "flux")],
    ("sd15", {"height": 31}, "divisible"),
    ("z_image", {"height": 31}, "divisible"),
    ("sd15", {"timesteps": [900, 100], "sigmas": [3.0, 1.0]}, "Only one"),
    ("sd15", {"image": "picture"}, "image"),
    ("flux2_klein", {"image": "picture"}, "Image must be"),
    ("pixart_sigma", BINNED, "sample size"),
    ("flux", {"max_sequence_length": 513}, "512"),
    ("sd15", {**SNOW, "negative_prompt_embeds": torch.zeros(2, 77, 32)}, "negative_prompt_embeds"),
    ("qwen_image", {**SNOW, "negative_prompt_embeds": EMBEDS}, "negative_prompt_embeds"),
    ("pixart_sigma", {"prompt_embeds": torch.zeros(2, 8, 32)}, "prompt_"),
    ("flux", {"prompt_embeds": EMBEDS}, "prompt_embeds"),
    ("flux", {**GIVEN, "prompt_2": "a dog"}, "prompt_embeds"),
    ("flux", {**GIVEN, "true_cfg_scale": 2.0, **UNMATCHED}, "prompt_embeds"),
    ("z_image", {"prompt_embeds": [torch.zeros(3, 16)] * 2}, "prompt_embeds"),
    ("lumina2", {"prompt_embeds": torch.zeros(2, 3, 8)}, "prompt_"),
    # The stock calls fail with these, too.
    ("sd15", {"scheduler": FLOW_EULER()}, "FlowMatchEuler"),
    ("flux", {"scheduler": FLOW_HEUN()}, "FlowMatchHeun"),
    # This works without search: its estimate x0 is not known.
    ("sd3", {"scheduler": diffusers.IPNDMScheduler()}, "IPNDMScheduler"),
]


@pytest.mark.parametrize(
    ("name", "change", "said"), REFUSED, ids=lambda part: part if isinstance(part, str) else ""
)
def test_what_cannot_be_honoured_is_refused_before_any_compute(name, change, said, monkeypatch):
    monkeypatch.setattr(Hub, "run", None)  # which lets networks compute
    pipe = FAMILIES[name].build(change["scheduler"]) if "scheduler" in change else shared(name)
    call = arguments(name, {key: value for key, value in change.items() if key != "scheduler"})
    with pytest.raises(ValueError, match=said):
        by_search(pipe, None if "prompt_embeds" in change else PROMPTS, call)


def test_a_network_of_distilled_guidance_takes_no_call_without_its_scale():
    pipe = edited(lambda pipe: pipe.transformer.register_to_config(guidance_embeds=True))(
        "qwen_image"
    )
    with pytest.raises(ValueError, match="guidance_scale"):
        upgrade(pipe).denoiser(**arguments("qwen_image"))


def test_a_vae_that_was_widened_to_decode_is_narrow_again_where_it_fails():
    pipe = FAMILIES["sdxl"].build().to(torch.float16)
    expected = by_search(pipe, PROMPTS[:1], arguments("sdxl"))["pt"]
    fails = Mock(side_effect=ValueError("no decoder"))
    hook = pipe.vae.decoder.register_forward_pre_hook(fails)
    with pytest.raises(ValueError, match="no decoder"):
        by_search(pipe, PROMPTS[:1], arguments("sdxl"))
    hook.remove()
    assert pipe.vae.dtype == torch.float16
    assert torch.equal(by_search(pipe, PROMPTS[:1], arguments("sdxl"))["pt"], expected)
