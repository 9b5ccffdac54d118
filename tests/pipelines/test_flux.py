"""FLUX.1, FLUX.2 klein and Qwen-Image: call arguments against the stock call, and what is special to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ttsnap import BestOfN, Event, SeedPruning, search
from ttsnap.pipelines import upgrade

from .tiny import DYNAMIC_SHIFT, FAMILIES, shared

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")  # NumPy's, from DPM-Solver

NAMES = ["flux", "flux_schnell", "qwen_image", "flux2_klein"]
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
    lists = {k: [v] * len(PROMPTS) if k == "negative_prompt" and isinstance(v, str) else v for k, v in call.items()}
    generators = [generator() for _ in PROMPTS]
    made: Tensor = pipe(prompt=prompts, generator=generators, output_type=output_type, **lists).images
    return made


def by_search(pipe: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The same images, and their latents as the stock call puts them out."""
    engine = upgrade(pipe).engine(red, keep=("latents",), batch_size=len(PROMPTS), **call)
    latents: dict[int, Tensor] = {}

    def listen(event: Event) -> None:
        if event.kind == "score":
            latents[event.job] = event.kept["latent"]

    results = search(PROMPTS, BestOfN(1), engine, seed=SEED, on_event=listen)
    finished = engine.denoiser.finished(torch.stack([latents[job] for job in range(len(PROMPTS))]))  # type: ignore[attr-defined]
    return torch.stack([result.best.image for result in results]), finished


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("flux", {"guidance_scale": 1.5}),
    ("flux", {"true_cfg_scale": 2.0, "negative_prompt": "bad"}),
    ("flux", {"true_cfg_scale": 2.0, "negative_prompt": ["bad", "dark"], "negative_prompt_2": ["ugly", "worse"]}),
    ("flux", {"true_cfg_scale": 1.0, "negative_prompt": "bad"}),
    ("flux", {"true_cfg_scale": 2.0}),
    ("flux", {"prompt_2": ["a dog", "a house"]}),
    ("flux", {"sigmas": [1.0, 0.6, 0.3]}),
    ("flux", {"height": 19, "width": 30}),
    ("flux", {"height": 64, "width": 96}),
    ("flux", {"max_sequence_length": 5}),
    ("flux", {"joint_attention_kwargs": {"scale": 0.5}}),
    ("flux_schnell", {"guidance_scale": 7.0}),
    ("flux_schnell", {"true_cfg_scale": 2.0, "negative_prompt": "bad"}),
    ("qwen_image", {"true_cfg_scale": 1.0}),
    ("qwen_image", {"negative_prompt": None}),
    ("qwen_image", {"negative_prompt": ["bad", "too dark"]}),
    ("qwen_image", {"guidance_scale": 3.0}),
    ("qwen_image", {"sigmas": [1.0, 0.6, 0.3]}),
    ("qwen_image", {"height": 19, "width": 30}),
    ("qwen_image", {"height": 64, "width": 96}),
    ("qwen_image", {"max_sequence_length": 3}),
    ("qwen_image", {"attention_kwargs": {"scale": 0.5}}),
    ("flux2_klein", {"guidance_scale": 1.0}),
    ("flux2_klein", {"sigmas": [1.0, 0.6, 0.3]}),
    ("flux2_klein", {"height": 19, "width": 30}),
    ("flux2_klein", {"height": 24, "width": 36}),
    ("flux2_klein", {"max_sequence_length": 5}),
    ("flux2_klein", {"text_encoder_out_layers": (0,)}),
    ("flux2_klein", {"attention_kwargs": {"scale": 0.5}}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[f"{name}-{change}" for name, change in CHANGES])
def test_call_arguments_do_what_they_do_in_the_stock_call(name: str, change: dict[str, Any]) -> None:
    call = arguments(name, change)
    images, latents = by_search(shared(name), call)
    assert torch.equal(images, by_stock(shared(name), PROMPTS, "pt", call))
    assert torch.equal(latents, by_stock(shared(name), PROMPTS, "latent", call))


@pytest.mark.parametrize("name", NAMES)
def test_rounding_in_half_precision_is_the_stock_one(name: str) -> None:
    pipe, call = FAMILIES[name].build().to(torch.bfloat16), arguments(name, {})
    images, latents = by_search(pipe, call)
    assert latents.dtype == torch.bfloat16
    assert torch.equal(latents, by_stock(pipe, PROMPTS, "latent", call))
    assert torch.equal(images, by_stock(pipe, PROMPTS, "pt", call).float())


def test_klein_without_guidance_when_it_was_distilled() -> None:
    pipe, call = FAMILIES["flux2_klein"].build(), arguments("flux2_klein", {})
    assert upgrade(pipe).denoiser(**call).passes_per_nfe == 2
    pipe.register_to_config(is_distilled=True)
    assert upgrade(pipe).denoiser(**call).passes_per_nfe == 1
    assert torch.equal(by_search(pipe, call)[0], by_stock(pipe, PROMPTS, "pt", call))


@pytest.mark.parametrize(
    ("name", "modules", "option"),
    [
        ("flux", ("transformer", "text_encoder", "text_encoder_2"), "joint_attention_kwargs"),
        ("qwen_image", ("transformer",), "attention_kwargs"),
        ("flux2_klein", ("transformer",), "attention_kwargs"),
    ],
)
def test_lora_scale(name: str, modules: tuple[str, ...], option: str) -> None:
    peft = pytest.importorskip("peft")
    pipe, targets = FAMILIES[name].build(), ["to_q", "to_v", "q_proj", "v_proj", "q", "v"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in modules:
            config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
            peft.inject_adapter_in_model(config, getattr(pipe, module))
    full, half = arguments(name, {}), arguments(name, {option: {"scale": 0.5}})
    images, latents = by_search(pipe, half)
    assert torch.equal(images, by_stock(pipe, PROMPTS, "pt", half))
    assert torch.equal(latents, by_stock(pipe, PROMPTS, "latent", half))
    assert not torch.allclose(images, by_search(pipe, full)[0], atol=1e-4)


# What encode_prompt gives beside embeddings, as the call names it.
BESIDE = {"flux": "{}pooled_prompt_embeds", "qwen_image": "{}prompt_embeds_mask"}


def encoded(pipe: Any, name: str, call: dict[str, Any]) -> dict[str, Any]:
    """The call with its texts as embeddings."""
    call = dict(call)
    options = {k: call[k] for k in ("max_sequence_length", "text_encoder_out_layers") if k in call}
    texts = {"": PROMPTS}
    if (negative := "" if name == "flux2_klein" else call.pop("negative_prompt", None)) is not None:
        texts["negative_"] = [negative] * len(PROMPTS)
    for prefix, prompts in texts.items():
        with torch.no_grad():
            embeds, beside = pipe.encode_prompt(prompt=prompts, **options)[:2]
        call[f"{prefix}prompt_embeds"] = embeds
        if name in BESIDE:
            call[BESIDE[name].format(prefix)] = beside
    return call


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("flux", {}),
        ("flux", {"true_cfg_scale": 2.0, "negative_prompt": "bad"}),
        ("qwen_image", {}),
        ("qwen_image", {"negative_prompt": None}),
        ("flux2_klein", {}),
    ],
    ids=str,
)
def test_embeddings_make_what_their_prompts_make(name: str, change: dict[str, Any]) -> None:
    call = arguments(name, change)
    given = encoded(shared(name), name, call)
    images, latents = by_search(shared(name), given)
    assert torch.equal(images, by_search(shared(name), call)[0])
    assert torch.equal(latents, by_stock(shared(name), None, "latent", given))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, {}) for name in NAMES),
        ("flux", {"true_cfg_scale": 2.0, "negative_prompt": "bad"}),
        ("qwen_image", {"negative_prompt": None}),
        ("flux2_klein", {"guidance_scale": 1.0}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("real_flops")
def test_flops_are_counted_without_running(name: str, change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    pipe = FAMILIES[name].build()
    denoiser = upgrade(pipe).denoiser(**arguments(name, change))
    calls: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with caplog.at_level(logging.DEBUG, "ttsnap"):
        predict, decode, *_ = denoiser.costs()
    hook.remove()
    assert not calls
    assert not caplog.records
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        denoiser.encode(["a red circle and a blue square"])
        x, zero = denoiser.init_latents([generator()]), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            denoiser.predict(x, zero, zero)
        assert predict == counter.get_total_flops() > 0
        with FlopCounterMode(display=False) as counter:
            denoiser.decode(x)
        assert decode == counter.get_total_flops() > 0


@pytest.mark.parametrize("name", ["flux", "flux2_klein"])
@pytest.mark.usefixtures("real_flops")
def test_a_small_vae_previews(name: str) -> None:
    pipe = FAMILIES[name].build()
    halvings = {"flux": 1, "flux2_klein": 0}[name]
    pipe.preview_vae = AutoencoderTiny(
        latent_channels=1,
        encoder_block_out_channels=(8,) * (1 + halvings),
        decoder_block_out_channels=(8,) * (1 + halvings),
        num_encoder_blocks=(1,) * (1 + halvings),
        num_decoder_blocks=(1,) * (1 + halvings),
    ).eval()
    denoiser = upgrade(pipe).denoiser(**arguments(name, {}))
    assert denoiser.costs().preview > 0
    with torch.no_grad():
        denoiser.encode(PROMPTS)
        x = denoiser.init_latents([generator()])
        size = (denoiser.layout.height, denoiser.layout.width)
        assert denoiser.preview(x).shape == denoiser.decode(x).shape == (1, 3, *size)


@pytest.mark.usefixtures("real_flops")
def test_qwen_image_has_no_small_vae() -> None:
    pipe = FAMILIES["qwen_image"].build()
    pipe.preview_vae = AutoencoderTiny()
    denoiser = upgrade(pipe).denoiser(**arguments("qwen_image", {}))
    with pytest.raises(ValueError, match="AutoencoderTiny cannot decode Qwen-Image's latents"):
        denoiser.costs()


def test_qwen_image_distilled_for_guidance_needs_a_scale() -> None:
    pipe = FAMILIES["qwen_image"].build()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ValueError, match="guidance_scale is required"):
        upgrade(pipe).denoiser(**arguments("qwen_image", {}))


EMBEDS = torch.zeros(1, 4, 32)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("flux", {"prompt_embeds": EMBEDS}, "pooled_prompt_embeds"),
        ("flux", {"prompt_embeds": EMBEDS, "prompt_2": "a dog"}, "Cannot forward both"),
        ("flux", {"negative_prompt": "bad", "negative_prompt_embeds": EMBEDS}, "Cannot forward both"),
        ("flux", {"max_sequence_length": 513}, "cannot be greater than 512"),
        ("flux", {"num_inference_steps": 0}, "at least 1, got 0"),
        (
            "flux",
            {
                "true_cfg_scale": 2.0,
                "prompt_embeds": EMBEDS,
                "pooled_prompt_embeds": EMBEDS,
                "negative_prompt_embeds": EMBEDS[:, 1:],
                "negative_pooled_prompt_embeds": EMBEDS,
            },
            "must have the same shape",
        ),
        ("qwen_image", {"negative_prompt": "bad", "negative_prompt_embeds": EMBEDS}, "Cannot forward both"),
        ("qwen_image", {"max_sequence_length": 1025}, "cannot be greater than 1024"),
        ("qwen_image", {"num_inference_steps": 0}, "at least 1, got 0"),
        ("flux2_klein", {"num_inference_steps": 0}, "at least 1, got 0"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_what_the_stock_call_refuses_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upgrade(shared(name)).denoiser(**arguments(name, change))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("flux", {"ip_adapter_image": "picture"}),
        ("flux", {"negative_ip_adapter_image": "picture"}),
        ("flux", {"latents": torch.zeros(1)}),
        ("qwen_image", {"callback_on_step_end": print}),
        ("flux2_klein", {"image": "picture"}),
    ],
    ids=str,
)
def test_what_search_cannot_honour_is_refused(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        upgrade(shared(name))(prompt="a cat", search=BestOfN(1), reward=red, **arguments(name, change))


@pytest.mark.parametrize("name", NAMES)
def test_schedulers_and_caches_that_cannot_be_used_are_named(name: str) -> None:
    pipe = FAMILIES[name].build(FlowMatchHeunDiscreteScheduler())
    passed = "FlowMatchHeunDiscreteScheduler cannot be set up with sigmas, mu|does not support custom"
    with pytest.raises(ValueError, match=passed):
        upgrade(pipe).denoiser(**arguments(name, {}))
    pipe = FAMILIES[name].build()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="disable_cache"):
        upgrade(pipe).denoiser(**arguments(name, {}))


# The stock calls take the noise of these from torch's global state.
NOISY: dict[str, Callable[[], Any]] = {
    "lcm": lambda: FlowMatchLCMScheduler(shift=3.0),
    "stochastic": lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, **DYNAMIC_SHIFT),
    "sde": lambda: DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_dynamic_shifting=True,
    ),
}


# All schedulers and all families, but not each with each.
FAST = [("flux", "sde"), ("flux_schnell", "lcm"), ("qwen_image", "lcm"), ("flux2_klein", "stochastic")]


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        pytest.param(name, noisy, marks=[] if (name, noisy) in FAST else pytest.mark.slow)
        for name in NAMES
        for noisy in NOISY
        if (name, noisy) != ("qwen_image", "sde")  # takes no sigmas
    ],
)
def test_noise_while_sampling_comes_from_the_seed(name: str, scheduler: str) -> None:
    twin, call = upgrade(FAMILIES[name].build(NOISY[scheduler]())), arguments(name, {})
    images = []
    for batch in (2, 16):
        engine = twin.engine(red, batch_size=batch, **call)
        assert engine.kernel.stochastic
        results = search(PROMPTS, SeedPruning(5, (0.4,), steps=(1,)), engine, seed=SEED, keep=2)
        images.append({(i, c.seed): c.image for i, r in enumerate(results) for c in r.images})
    assert sorted(images[0]) == sorted(images[1])
    for row, image in images[0].items():
        torch.testing.assert_close(image, images[1][row], atol=1e-4, rtol=0)
    (_, seed), image = next(iter(images[0].items()))
    (alone,) = search(PROMPTS[:1], BestOfN(1), twin.engine(red, **call), seed=seed)
    torch.testing.assert_close(alone.best.image, image, atol=1e-4, rtol=0)
    # It is noise: another branch of the same schedule without it looks different.
    (other,) = search(PROMPTS[:1], BestOfN(1), twin.engine(red, kernel="ode", **call), seed=seed)
    assert not torch.allclose(other.best.image, image, atol=1e-3)
