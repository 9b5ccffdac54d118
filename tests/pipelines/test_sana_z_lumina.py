"""Sana, Z-Image and Lumina2 against stock diffusers: every argument of the call, and guidance that depends on the step.

tests/pipelines/test_parity.py runs them under many schedulers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaTransformer2DModel,
    UniPCMultistepScheduler,
)
from peft import LoraConfig
from torch import Tensor

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.pipelines import upgrade
from ttsnap.profiling.flops import count_flops
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES, jitter, shared

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")  # NumPy's, from DPM-Solver

STEPS = 4
PROMPTS = ["a cat", "two dogs in snow"]
CALLS = {name: {**FAMILIES[name].call, "num_inference_steps": STEPS} for name in ("sana", "z_image", "lumina2")}


def mean_red(images: Any, prompts: Any) -> Any:
    return images[:, 0].mean((1, 2))


def build(family: str, change: Callable[[Any], Any] | None = None) -> Any:
    if change is None:
        return shared(family)
    pipe = FAMILIES[family].build()
    change(pipe)
    return pipe


def relative(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return float((ours.float() - expected.float()).abs().max() / expected.float().abs().max())


def prediction(denoiser: Any, x: Tensor, step: list[int], at: list[int]) -> Any:
    with torch.no_grad():
        return denoiser.predict(x, torch.tensor(step), torch.tensor(at))


def noise(denoiser: Any, n: int) -> Tensor:
    x: Tensor = denoiser.init_latents([seeded(i) for i in range(n)])
    return x


# Changes of a pipeline


def with_lora(pipe: Any) -> None:
    targets = ["to_q", "to_v"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))


def with_scheduler(scheduler: Any, **options: Any) -> Callable[[Any], None]:
    return lambda pipe: setattr(pipe, "scheduler", scheduler(**options))


unshifted = with_scheduler(FlowMatchEulerDiscreteScheduler, shift=1.0)


def with_timestep_scale(pipe: Any) -> None:
    pipe.transformer.register_to_config(timestep_scale=0.5)


def with_variance(pipe: Any) -> None:
    config = {**pipe.transformer.config, "out_channels": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.transformer = jitter(SanaTransformer2DModel.from_config(config))


def with_small_bins(pipe: Any) -> None:
    """The true ones are far too large for a test."""
    pipe.image_processor.classify_height_width_bin = lambda height, width, ratios: (64, 32) if ratios else None


CHANGES: dict[str, list[tuple[dict[str, Any], Any]]] = {
    "sana": [
        ({}, None),
        ({"guidance_scale": 1.0}, None),
        ({"negative_prompt": "snow"}, None),
        ({"complex_human_instruction": ["Draw well.", "Prompt: "]}, None),
        ({"complex_human_instruction": ...}, None),
        ({"clean_caption": True}, None),
        ({"max_sequence_length": 4}, None),
        ({"height": 64, "width": 32}, None),
        ({"use_resolution_binning": True, "height": 40, "width": 24}, with_small_bins),
        ({"use_resolution_binning": True, "height": 64, "width": 32}, with_small_bins),
        ({"attention_kwargs": {"scale": 0.5}}, with_lora),
        ({"timesteps": [900, 500, 100]}, with_scheduler(DPMSolverMultistepScheduler)),
        ({"sigmas": [1.0, 0.6, 0.3]}, with_scheduler(FlowMatchEulerDiscreteScheduler)),
        ({"eta": 0.5}, with_scheduler(DDIMScheduler, clip_sample=False)),
        ({}, with_scheduler(EulerDiscreteScheduler)),
        ({}, with_timestep_scale),
        ({}, with_variance),
    ],
    "z_image": [
        ({}, None),
        ({"guidance_scale": 0.0}, None),
        ({"guidance_scale": 1.0}, None),
        ({"negative_prompt": "snow"}, None),
        ({"cfg_normalization": True}, None),
        ({"cfg_normalization": 0.5}, None),
        ({"cfg_truncation": 0.3}, None),
        ({"cfg_truncation": 0.3, "cfg_normalization": 0.5}, None),
        ({"cfg_truncation": None}, None),
        ({"cfg_truncation": -1.0}, None),
        # In float32 this time is a little above 0.6.
        ({"cfg_truncation": 0.6, "sigmas": [1.0, 0.4, 0.2]}, unshifted),
        ({"sigmas": [1.0, 0.6, 0.3]}, None),
        ({"height": 24, "width": 16}, None),
        ({"max_sequence_length": 4}, None),
        ({"joint_attention_kwargs": {"scale": 0.5}}, with_lora),
    ],
    "lumina2": [
        ({}, None),
        ({"guidance_scale": 1.0}, None),
        ({"negative_prompt": "snow"}, None),
        ({"cfg_trunc_ratio": 0.5}, None),
        ({"cfg_trunc_ratio": 0.7, "sigmas": [1.0, 0.6, 0.3]}, None),
        ({"cfg_trunc_ratio": 0.0}, None),
        ({"cfg_normalization": False}, None),
        ({"cfg_normalization": False, "cfg_trunc_ratio": 0.25}, None),
        ({"sigmas": [1.0, 0.6, 0.3]}, None),
        ({"system_prompt": ..., "max_sequence_length": 200}, None),
        ({"height": 48, "width": 32}, None),
        ({"max_sequence_length": 8}, None),
        ({"attention_kwargs": {"scale": 0.5}}, with_lora),
    ],
}


def merged(family: str, change: dict[str, Any]) -> dict[str, Any]:
    """The family's call with this change; `...` leaves an argument at its stock default."""
    return {name: value for name, value in {**CALLS[family], **change}.items() if value is not ...}


@pytest.mark.parametrize(
    ("family", "change", "prepare"),
    [(family, *case) for family, cases in CHANGES.items() for case in cases],
    ids=lambda value: getattr(value, "__name__", "") or str(value)[:60],
)
def test_arguments_do_what_they_do_in_the_stock_call(family: str, change: dict[str, Any], prepare: Any) -> None:
    stock = build(family, prepare)
    twin, call = upgrade(stock), merged(family, change)
    seeds = [4, 5, 6]
    options: dict[str, Any] = {"search": BestOfN(3), "reward": mean_red, "num_images_per_prompt": 3}
    found = twin("a cat", seed=4, output_type="latent", **options, **call)
    rows = {c.seed: (latent, c.image) for c, latent in zip(found.search[0].images, found.images, strict=True)}
    for kind, output_type in enumerate(("latent", "pt")):
        expected = stock(
            "a cat",
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_images_per_prompt=3,
            output_type=output_type,
            **call,
        ).images
        assert torch.equal(torch.stack([rows[seed][kind] for seed in seeds]), expected)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("sana", {}),
        ("z_image", {"cfg_truncation": 0.5}),
        ("z_image", {"cfg_truncation": 0.3, "cfg_normalization": 0.5}),
        ("z_image", {"cfg_truncation": -1.0}),
        ("lumina2", {"cfg_trunc_ratio": 0.5}),
        ("lumina2", {"cfg_trunc_ratio": 0.25, "cfg_normalization": False}),
        ("lumina2", {"cfg_trunc_ratio": 0.0}),
    ],
    ids=str,
)
def test_rows_at_different_steps_are_guided_as_in_stock_runs_of_one(family: str, change: dict[str, Any]) -> None:
    stock = build(family)
    call, negative = {**CALLS[family], **change}, ["snow", "a green boat"]
    engine = upgrade(stock).engine(mean_red, batch_size=5, **call, negative_prompt=negative)
    batches: list[tuple[int, ...]] = []
    guided = engine.denoiser.guided

    def watched(x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Any:
        batches.append(tuple(step.tolist()))
        return guided(x, t, step, at)

    engine.denoiser.guided = watched
    found = search(PROMPTS, SeedPruning(6, (0.5, 0.5), steps=(1, 2)), engine, seed=7, keep=2)
    assert any(len(set(steps)) > 1 for steps in batches)
    for result, unwanted in zip(found, negative, strict=True):
        for candidate in result.images:
            generator = torch.Generator().manual_seed(candidate.seed)
            again = stock(
                result.prompt, negative_prompt=[unwanted], generator=generator, output_type="pt", **call
            ).images[0]
            assert relative(candidate.image, again) < 1e-5


@pytest.mark.parametrize(
    ("family", "change", "last"),
    [
        ("z_image", {"cfg_truncation": 0.4}, 2),
        ("z_image", {"cfg_truncation": 0.4, "cfg_normalization": 0.5}, 2),
        ("lumina2", {"cfg_trunc_ratio": 0.5}, 1),
        ("lumina2", {"cfg_trunc_ratio": 0.5, "cfg_normalization": False}, 1),
    ],
    ids=str,
)
def test_a_batch_across_the_truncation_is_its_rows(family: str, change: dict[str, Any], last: int) -> None:
    denoiser = upgrade(build(family)).denoiser(**CALLS[family], **change)
    plain = upgrade(build(family)).denoiser(**{**CALLS[family], "guidance_scale": 0.0})
    step, at = [0, 3, last, last + 1, 1, 3], [0, 1, 1, 0, 1, 0]
    rows: list[int] = []
    passes = {"z_image": lambda args, kwargs: len(args[0]), "lumina2": lambda args, kwargs: len(kwargs["timestep"])}
    with torch.no_grad():
        denoiser.encode(PROMPTS), plain.encode(PROMPTS)
    x = noise(denoiser, len(step))
    hook = denoiser.pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(passes[family](args, kwargs)), with_kwargs=True
    )
    together = prediction(denoiser, x, step, at).out
    hook.remove()
    unguided = [i for i, k in enumerate(step) if k > last]
    assert sum(rows) == 2 * len(step) - len(unguided)
    for i in range(len(step)):
        alone = prediction(denoiser, x[i : i + 1], [step[i]], [at[i]]).out
        bare = prediction(plain, x[i : i + 1], [step[i]], [at[i]]).out
        assert relative(together[i : i + 1], alone) < 1e-5
        assert torch.equal(alone, bare) == (i in unguided)


def embeddings(family: str, pipe: Any) -> dict[str, Any]:
    call = CALLS[family]
    with torch.no_grad():
        if family == "z_image":
            text, negative = pipe.encode_prompt(
                list(PROMPTS), negative_prompt=["snow", "rain"], max_sequence_length=call["max_sequence_length"]
            )
            return {"prompt_embeds": text, "negative_prompt_embeds": negative}
        names = ("system_prompt", "max_sequence_length", "complex_human_instruction")
        options = {name: call[name] for name in names if name in call}
        text, mask, negative, negative_mask = pipe.encode_prompt(
            list(PROMPTS), True, negative_prompt=["snow", "rain"], **options
        )
    return {
        "prompt_embeds": text,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": negative_mask,
    }


@pytest.mark.parametrize("family", CALLS)
def test_given_embeddings_are_the_prompts(family: str) -> None:
    twin = upgrade(build(family))
    options: dict[str, Any] = {"search": BestOfN(2), "reward": mean_red, "num_images_per_prompt": 2, "seed": 0}
    options |= {**CALLS[family], "output_type": "pt"}
    prompted = twin(PROMPTS, negative_prompt=["snow", "rain"], **options)
    embedded = twin(reward_prompts=PROMPTS, **embeddings(family, twin), **options)
    assert torch.equal(prompted.images, embedded.images)
    assert [r.prompt for r in embedded.search] == PROMPTS


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        *[(family, {"latents": torch.zeros(1)}, "latents= cannot be used") for family in CALLS],
        *[(family, {"callback_on_step_end": print}, "use on_event") for family in CALLS],
        *[(family, {"height": 31}, "divisible by") for family in CALLS],
        *[(family, {"num_inference_steps": 0}, "at least 1, got 0") for family in CALLS],
        *[(family, {"negative_prompt": ["snow"]}, "1 entries, but there are 2 prompts") for family in CALLS],
        ("sana", {"use_resolution_binning": True}, "no resolution bins for sample_size 8"),
        ("sana", {"negative_prompt_embeds": torch.zeros(2, 16, 8)}, "Cannot forward both"),
        ("sana", {"sigmas": [1.0, 0.5]}, "does not support custom"),
        ("sana", {"timesteps": [900, 100]}, "cannot be set up with timesteps"),
        ("z_image", {"prompt": None, "prompt_embeds": [torch.zeros(3, 16)] * 2}, "need negative_prompt_embeds"),
        ("z_image", {"scheduler": UniPCMultistepScheduler(use_flow_sigmas=True)}, "cannot be set up with sigmas, mu"),
        ("lumina2", {"max_sequence_length": 513}, "cannot be greater than 512"),
        ("lumina2", {"prompt": None, "prompt_embeds": torch.zeros(2, 3, 8)}, "Must provide `prompt_attention_mask`"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_honoured_is_refused(family: str, change: dict[str, Any], message: str) -> None:
    twin = upgrade(FAMILIES[family].build())
    if "bins" in message:
        twin.transformer.register_to_config(sample_size=8)
    call = {"prompt": PROMPTS, "search": BestOfN(2), "reward": mean_red, "reward_prompts": PROMPTS, **CALLS[family]}
    call |= change
    twin.scheduler = call.pop("scheduler", twin.scheduler)
    with pytest.raises(ValueError, match=message):
        twin(**call)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
@pytest.mark.parametrize("family", CALLS)
@pytest.mark.usefixtures("real_flops")
def test_flops_are_counted_without_a_call_and_are_those_of_one(family: str, guided: bool) -> None:
    twin = upgrade(FAMILIES[family].build())
    denoiser = twin.denoiser(**{**CALLS[family], **({} if guided else {"guidance_scale": 0.0})})
    calls: list[int] = []
    hook = twin.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    counted = denoiser.costs()[:2]
    assert not calls
    hook.remove()
    x, zero = noise(denoiser, 1), torch.zeros(1, dtype=torch.long)
    assert counted == (
        count_flops(functools.partial(denoiser.predict, x, zero, zero)),
        count_flops(functools.partial(denoiser.decode, x)),
    )
    assert denoiser.passes_per_nfe == 1 + guided


@pytest.mark.parametrize("family", CALLS)
@pytest.mark.usefixtures("real_flops")
def test_previews_are_decoded_by_the_scale_of_their_own_vae(family: str) -> None:
    twin = upgrade(build(family))
    channels = 16 if family == "z_image" else 4
    sizes = {f"{part}_block_out_channels": (4, 4) for part in ("encoder", "decoder")}
    blocks = {f"num_{part}_blocks": (1, 1) for part in ("encoder", "decoder")}
    twin.preview_vae = AutoencoderTiny(latent_channels=channels, **sizes, **blocks).eval()
    denoiser = twin.denoiser(**CALLS[family])
    with torch.no_grad():
        denoiser.encode(PROMPTS)
        x = noise(denoiser, 2)
        expected = (twin.preview_vae.decode(x).sample / 2 + 0.5).clamp(0, 1)
        assert torch.equal(denoiser.preview(x), expected)
        assert denoiser.costs().preview > 0
