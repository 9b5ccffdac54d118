"""The embedded model inside ComfyUI is the diffusers pipeline: what tests of searches there build on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.comfyui.real import LATENT, tiny_sd3_model

pytestmark = pytest.mark.usefixtures("comfy", "_inference")
PROMPT, STEPS, CFG = "a red circle left of a blue square", 6, 4.0
T = [1.0, 0.7, 0.4, 0.1]


@pytest.fixture
def _inference() -> Iterator[None]:
    """As nodes run."""
    with torch.inference_mode():
        yield


def noise(seed: int, shape: tuple[int, ...] = LATENT) -> Tensor:
    """diffusers' noise of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sampled(model: Any, seed: int, sampler: str, texts: tuple[Any, Any], cfg: float = CFG) -> Tensor:
    """What the stock KSampler makes."""
    import comfy.sample

    latent = torch.zeros(1, model.model.latent_format.latent_channels, 8, 8)
    start = comfy.sample.prepare_noise(latent, seed)
    arguments = (sampler, "simple", *texts, latent)
    latents: Tensor = comfy.sample.sample(model, start, STEPS, cfg, *arguments, seed=seed, disable_pbar=True)
    return latents


def texts() -> tuple[Any, Any]:
    from tests.comfyui.toy_nodes.embedded import conditioning

    return conditioning(PROMPT), conditioning("")


def embedded() -> Any:
    from tests.comfyui.toy_nodes import embedded

    return embedded


def close(ours: Tensor, theirs: Tensor, within: float = 2e-5) -> bool:
    return ours.shape == theirs.shape and (ours - theirs).abs().max().item() < within


def test_noise_is_that_of_diffusers() -> None:
    import comfy.sample

    for seed in (0, 7, 2**40):
        assert torch.equal(comfy.sample.prepare_noise(torch.zeros(LATENT), seed), noise(seed))


def test_rows_of_different_sigmas_are_evaluated_as_by_the_transformer() -> None:
    pooled, context = noise(1, (4, 160)), noise(2, (4, 34, 160))
    x, t = noise(0, (4, *LATENT[1:])), torch.tensor(T)
    network = embedded().pipeline().transformer
    v = network(x, encoder_hidden_states=context, pooled_projections=pooled, timestep=t * 1000, return_dict=False)[0]
    x0 = embedded().embedded_model().model.apply_model(x, t, c_crossattn=context, y=pooled)
    assert close(x0, x - t.view(-1, 1, 1, 1) * v)


def test_euler_of_the_stock_ksampler_is_a_loop_over_the_transformer() -> None:
    import comfy.samplers

    model, (positive, negative), x = embedded().embedded_model(), texts(), noise(5)
    network = embedded().pipeline().transformer
    sigmas = comfy.samplers.KSampler(model, STEPS, x.device, "euler", "simple", 1.0).sigmas
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    context = torch.cat([negative[0][0], positive[0][0]])
    pooled = torch.cat([negative[0][1]["pooled_output"], positive[0][1]["pooled_output"]])
    for now, then in itertools.pairwise(sigmas):
        rows, t = torch.cat([x, x]), torch.stack([now, now]) * 1000
        v = network(rows, encoder_hidden_states=context, pooled_projections=pooled, timestep=t, return_dict=False)[0]
        x = x + (then - now) * (v[:1] + CFG * (v[1:] - v[:1]))
    assert close(sampled(model, 5, "euler", (positive, negative)), model.model.process_latent_out(x))


def test_an_image_is_that_of_the_diffusers_pipeline() -> None:
    """On the sigmas of the pipeline's scheduler."""
    import comfy.samplers

    model, vae, pipe = embedded().embedded_model(), embedded().embedded_vae(), embedded().pipeline()
    call: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": CFG, "max_sequence_length": 1}
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(PROMPT, generator=torch.Generator().manual_seed(3), output_type="pt", **call).images

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*texts())
    guider.set_cfg(CFG)
    latent, sampler = torch.zeros(LATENT), comfy.samplers.sampler_object("euler")
    latents = guider.sample(noise(3), latent, sampler, pipe.scheduler.sigmas, disable_pbar=True, seed=3)
    image = vae.decode(latents)
    assert image.shape == (1, 32, 32, 3)
    assert close(image.movedim(-1, 1), stock, 1e-4)


def test_the_vae_is_that_of_the_pipeline() -> None:
    vae, image = embedded().embedded_vae(), torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    latents = vae.encode(image)
    stock = embedded().pipeline().vae
    assert close(latents, stock.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode())
    decoded = stock.decode(latents, return_dict=False)[0] / 2 + 0.5
    assert close(vae.decode(latents), decoded.clamp(0, 1).movedim(1, -1))
    assert (vae.spacial_compression_decode(), vae.temporal_compression_decode()) == (4, None)


def test_previews_have_the_colours_of_the_image() -> None:
    import latent_preview

    model, vae = embedded().embedded_model().model, embedded().embedded_vae()
    image = torch.zeros(1, 32, 32, 3)
    image[:, :16, :, 0], image[:, 16:, :, 2] = 1, 1  # red above blue
    form = model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(form.latent_rgb_factors, form.latent_rgb_factors_bias)
    shown = np.asarray(previewer.decode_latent_to_preview(model.process_latent_in(vae.encode(image))))
    assert shown.shape == (8, 8, 3)
    assert (shown.argmax(2) == [[0]] * 4 + [[2]] * 4).mean() > 0.9


def test_as_a_model_of_noise_it_has_the_same_estimates() -> None:
    """x = latent + s * noise is the flow's x at t = s / (1 + s), times 1 + s."""
    flow, eps = embedded().embedded_model().model, embedded().embedded_model("eps").model
    s = eps.model_sampling.sigmas[[999, 700, 300, 20]]
    x, context, y = noise(0, (4, *LATENT[1:])), noise(1, (4, 34, 160)), noise(2, (4, 160))
    ours = eps.apply_model(x * (1 + s).view(-1, 1, 1, 1), s, c_crossattn=context, y=y)
    theirs = flow.apply_model(x, s / (1 + s), c_crossattn=context, y=y)
    assert close(ours, theirs, 1e-4)


def test_as_a_model_of_noise_it_draws_what_it_is_asked_for() -> None:
    from ttsnap.scenes import check, parse

    latents = sampled(embedded().embedded_model("eps"), 3, "euler", texts())
    image = embedded().embedded_vae().decode(latents).movedim(-1, 1).numpy()
    soft, _ = check(image, [parse(PROMPT)])
    assert soft[0] > 0.4


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "euler_ancestral"])
def test_a_tiny_stable_diffusion_3_of_the_stock_loader(sampler: str) -> None:
    model = tiny_sd3_model()
    assert type(model.model).__name__ == "SD3"
    latents = sampled(model, 0, sampler, texts())
    assert latents.shape == (1, 16, 8, 8)
    assert latents.isfinite().all()
