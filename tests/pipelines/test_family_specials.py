"""What is special to some families: guidance by step, sizes as texts, noise while sampling, filters of the result."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
)
from torch import Tensor

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.pipelines import upgrade

from .test_families import (
    PACKED,
    PROMPTS,
    SEED,
    UNETS,
    arguments,
    assert_equal,
    by_search,
    by_stock,
    generator,
    rebuilt,
    red,
    scheduled,
)
from .tiny import DYNAMIC_SHIFT, FAMILIES, autoencoder, shared

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")  # NumPy's, from DPM-Solver


def relative(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return float((ours.float() - expected.float()).abs().max() / expected.float().abs().max())


# --- Stable Diffusion, SDXL and PixArt ------------------------------------------------------------------------------


def test_zero_snr_with_v_prediction() -> None:
    """There is nothing but noise at the first step, so that the estimate there must not be divided by what is left."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe = scheduled(DDIMScheduler, clip_sample=False, **options)("sd15")
    call = arguments("sd15", {"guidance_rescale": 0.7})
    assert_equal(pipe, call)
    denoiser = upgrade(pipe).denoiser(**call)
    assert denoiser.schedule.alpha[0] == 0
    with torch.no_grad():
        denoiser.encode(["a cat"])
        zero = torch.zeros(1, dtype=torch.long)
        prediction = denoiser.predict(denoiser.init_latents([generator()]), zero, zero)
    torch.testing.assert_close(prediction.x0, -prediction.out)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_distilled_guidance(name: str, scale: float) -> None:
    pipe = scheduled(LCMScheduler)(name)
    pipe.unet = rebuilt(pipe.unet, time_cond_proj_dim=16)
    call = arguments(name, {"guidance_scale": scale})
    assert upgrade(pipe).denoiser(**call).passes_per_nfe == 1
    assert_equal(pipe, call)


def test_pixart_bins_sizes() -> None:
    pipe = FAMILIES["pixart_sigma"].build()
    pipe.transformer = rebuilt(pipe.transformer, sample_size=32, patch_size=8)
    call = arguments("pixart_sigma", {"height": 200, "width": 264, "num_inference_steps": 1, "guidance_scale": 1.0})
    call["use_resolution_binning"] = True
    out = upgrade(pipe)("a cat", search=BestOfN(1), reward=red, seed=SEED, output_type="pt", **call).images
    assert out.shape[2:] == (200, 264)
    assert torch.equal(out, by_stock(pipe, ["a cat"], "pt", call))
    twin = upgrade(pipe)
    binned = [twin.denoiser(**{**call, "height": h, "width": w}) for h, w in ((200, 264), (256, 256), (None, None))]
    assert [(d.layout.height, d.layout.width) for d in binned] == [(224, 288), (256, 256), (256, 256)]


def test_negative_sizes_belong_to_every_row() -> None:
    """Stock mixes them up in batches, but not for a single picture."""
    sizes = {"original_size": (64, 48), "target_size": (32, 40), "negative_original_size": (16, 24)}
    sizes |= {"negative_crops_coords_top_left": (2, 4), "negative_target_size": (48, 16)}
    pipe, call = shared("sdxl"), arguments("sdxl", sizes)
    singles = [by_stock(pipe, [prompt], "latent", call) for prompt in PROMPTS]
    for prompt, single in zip(PROMPTS, singles, strict=True):
        assert torch.equal(by_search(pipe, [prompt], call)["latent"], single)
    batch, stock = by_search(pipe, PROMPTS, call)["latent"], by_stock(pipe, PROMPTS, "latent", call)
    assert relative(batch, torch.cat(singles)) < 1e-5
    assert relative(stock, torch.cat(singles)) > 1e-4


def test_vaes_with_a_mean_and_a_deviation() -> None:
    pipe = FAMILIES["sdxl"].build()
    pipe.vae = autoencoder(4, latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[1.0, 0.8, 1.2, 0.9], scaling_factor=0.5)
    assert_equal(pipe, arguments("sdxl", {}))


def test_half_precision_decodes_in_single() -> None:
    pipe = FAMILIES["sdxl"].build().to(torch.float16)
    assert pipe.vae.config.force_upcast
    with pytest.warns(FutureWarning, match="upcast_vae"):
        images = assert_equal(pipe, arguments("sdxl", {}))
    assert images.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16


def returned(pipe: Any, call: dict[str, Any]) -> Tensor:
    """The images that a search returns, which are those of the stock call."""
    made: Tensor = upgrade(pipe)(PROMPTS, search=BestOfN(1), reward=red, seed=SEED, output_type="pt", **call).images
    assert torch.equal(made, by_stock(pipe, PROMPTS, "pt", call))
    return made


def test_the_watermark_is_on_the_picture() -> None:
    pipe, call = FAMILIES["sdxl"].build(), arguments("sdxl", {})
    plain = returned(pipe, call)
    pipe.watermark = SimpleNamespace(apply_watermark=lambda images: (images + 0.25).clamp(-1, 1).cpu())
    assert not torch.equal(returned(pipe, call), plain)


# --- FLUX.2 klein and Qwen-Image ------------------------------------------------------------------------------------


def test_klein_without_guidance_when_it_was_distilled() -> None:
    pipe, call = FAMILIES["flux2_klein"].build(), arguments("flux2_klein", {})
    assert upgrade(pipe).denoiser(**call).passes_per_nfe == 2
    pipe.register_to_config(is_distilled=True)
    assert upgrade(pipe).denoiser(**call).passes_per_nfe == 1
    assert_equal(pipe, call)


@pytest.mark.usefixtures("real_flops")
def test_qwen_image_has_no_small_vae() -> None:
    pipe = FAMILIES["qwen_image"].build()
    pipe.preview_vae = AutoencoderTiny()
    denoiser = upgrade(pipe).denoiser(**arguments("qwen_image", {}))
    with pytest.raises(ValueError, match="AutoencoderTiny"):
        denoiser.costs()


def test_qwen_image_distilled_for_guidance_needs_a_scale() -> None:
    pipe = FAMILIES["qwen_image"].build()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ValueError, match="guidance_scale"):
        upgrade(pipe).denoiser(**arguments("qwen_image", {}))


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
        for name in PACKED
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


# --- Z-Image and Lumina2: guidance that depends on the step ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
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
def test_rows_at_different_steps_are_guided_as_in_stock_runs_of_one(name: str, change: dict[str, Any]) -> None:
    stock, call = shared(name), arguments(name, {"num_inference_steps": 4, **change})
    negative = ["snow", "a green boat"]
    engine = upgrade(stock).engine(red, batch_size=5, **call, negative_prompt=negative)
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
            options = {"generator": generator(candidate.seed), "output_type": "pt", **call}
            again = stock(result.prompt, negative_prompt=[unwanted], **options).images[0]
            assert relative(candidate.image, again) < 1e-5
