"""Drafts that are finished by a pipeline: what stock diffusers makes in two calls, at every scheduler and family."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FluxImg2ImgPipeline,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from ttsnap import BestOfN
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.drafting.drafters import Drafter
from ttsnap.pipelines.drafting.drafting import stock_lines
from ttsnap.sampling.drafts import DraftSettings
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES, STABLE_DIFFUSION_BETAS, jitter, shared

PROMPT = "a red circle"


def dark(images: Any, prompts: Any) -> Any:
    return -images.mean((1, 2, 3))


def drafter_of(pipe: Any, network: str) -> Drafter:
    """Other weights of the same network."""
    return Drafter(jitter(copy.deepcopy(getattr(pipe, network))), DraftSettings())


@pytest.mark.parametrize(
    ("name", "redraws", "network"),
    [
        ("sd3", StableDiffusion3Img2ImgPipeline, "transformer"),
        ("sdxl", StableDiffusionXLImg2ImgPipeline, "unet"),
        ("flux", FluxImg2ImgPipeline, "transformer"),
    ],
)
def test_stock_makes_the_winner_again_in_two_calls(name: str, redraws: Any, network: str) -> None:
    """A draft is one step of the stock call with the drafter's weights, and its finish the stock image-to-image call
    from that latent: `strength` says from which step, and the generator of the seed draws the same noise."""
    stock, call = copy.copy(shared(name)), dict(FAMILIES[name].call)
    pipe, drafter = upgrade(stock), drafter_of(stock, network)
    call["num_inference_steps"] = 12
    sampler = SamplerOptions(draft=drafter, finish="0.6:3")
    found = pipe(
        PROMPT, search=BestOfN(2), reward=dark, seed=5, draft=drafter, finish="0.6:3", output_type="latent", **call
    )
    denoiser = pipe.sampling_denoiser(sampler, **call)
    assert len(denoiser.drafts.start.whole.timesteps) < 12
    assert denoiser.grid.steps == 3

    def one_of(kind: Any, net: Any = None) -> Any:
        parts = dict(stock.components) if net is None else {**stock.components, network: net}
        made = kind(**{key: parts[key] for key in inspect.signature(kind).parameters if key in parts})
        made.scheduler = copy.deepcopy(stock.scheduler)
        made.set_progress_bar_config(disable=True)
        return made

    lines = stock_lines(denoiser, PROMPT, call, found.search[0].best.seed)
    names: dict[str, Any] = {"torch": torch, "drafter": one_of(type(stock), drafter.net), "redraw": one_of(redraws)}
    exec("\n".join([lines[0], f"image = {lines[1][:-1]}, output_type='latent').images"]), names)
    image = names["image"]
    torch.testing.assert_close(found.images, image, rtol=2e-6, atol=1e-5)  # latents of SDXL are as large as 10
    assert float(image.std()) > 0.1


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_that_drafts_finishes_drafts(name: str) -> None:
    pipe, call = upgrade(shared(name)), FAMILIES[name].call
    if name == "sd15":  # its own PNDM begins at the start alone
        pipe.scheduler = DDIMScheduler(**STABLE_DIFFUSION_BETAS)
    denoiser = pipe.sampling_denoiser(SamplerOptions(draft="hot", finish=0.5), **{**call, "num_inference_steps": 4})
    denoiser.encode([PROMPT])
    noise, zero = denoiser.init_latents([seeded(3), seeded(4)]), torch.zeros(2, dtype=torch.long)
    guess, begun = denoiser.drafts.start.begin(noise, zero)
    alpha, sigma = float(denoiser.schedule.alpha[0]), float(denoiser.schedule.sigma[0])
    unit = noise / float(getattr(denoiser.schedule.scheduler, "init_noise_sigma", 1.0))
    torch.testing.assert_close(begun.float(), (alpha * guess + sigma * unit).float(), rtol=0, atol=1e-5)
    assert 0 < denoiser.grid.levels[0] < 0.8
    assert denoiser.grid.steps < 4
    found = pipe(prompt=PROMPT, search=BestOfN(1), reward=dark, seed=3, draft="hot", finish=0.5, output_type="latent",
                 **{**call, "num_inference_steps": 4})  # fmt: skip
    plain = pipe(prompt=PROMPT, search=BestOfN(1), reward=dark, seed=3, output_type="latent",
                 **{**call, "num_inference_steps": 4})  # fmt: skip
    whole = pipe(prompt=PROMPT, search=BestOfN(1), reward=dark, seed=3, draft="hot", finish=1, output_type="latent",
                 **{**call, "num_inference_steps": 4})  # fmt: skip
    assert torch.equal(first(whole), first(plain))
    assert not torch.equal(first(found), first(plain))


def first(output: Any) -> Any:
    return getattr(output, "images", None) if hasattr(output, "images") else output.frames


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_schedulers_go_on_from_where_a_draft_begins(scheduler: Any, prediction: str) -> None:
    """As the stock image-to-image call does: the same steps from latents that are put in by hand."""
    stock = copy.copy(shared("sd15"))
    stock.scheduler = scheduler(**STABLE_DIFFUSION_BETAS, prediction_type=prediction)
    pipe, call = upgrade(stock), {**FAMILIES["sd15"].call, "num_inference_steps": 6}
    out = pipe(PROMPT, search=BestOfN(1), reward=dark, seed=3, draft="hot", finish=0.6, output_type="latent", **call)
    denoiser = pipe.sampling_denoiser(SamplerOptions(draft="hot", finish=0.6), **call)
    denoiser.encode([PROMPT])
    _, x = denoiser.drafts.start.begin(denoiser.init_latents([seeded(3)]), torch.zeros(1, dtype=torch.long))
    again = copy.deepcopy(stock.scheduler)
    again.set_timesteps(6)
    begin = len(denoiser.drafts.start.whole.timesteps) - len(denoiser.schedule.timesteps)
    if scheduler is not DDIMScheduler:
        again.set_begin_index(begin)
    for k, t in enumerate(again.timesteps[begin:]):
        made = denoiser.predict(x, torch.tensor([k]), torch.tensor([0])).out
        again.is_scale_input_called = True
        x = again.step(made, t, x, return_dict=False)[0]
    torch.testing.assert_close(out.images, x, rtol=0, atol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    stock = copy.copy(shared("sd15"))
    stock.scheduler = PNDMScheduler(**STABLE_DIFFUSION_BETAS, skip_prk_steps=True)
    pipe, call = upgrade(stock), {**FAMILIES["sd15"].call, "num_inference_steps": 6}
    for finish, draft, why in (
        (0.6, "hot", "PNDMScheduler from a later step on"),
        (0.6, None, "there is no drafter"),
        ("draft", "hot", "nothing is known of where to finish"),
    ):
        with pytest.raises(ValueError, match=why):
            pipe(PROMPT, search=BestOfN(1), reward=dark, seed=3, draft=draft, finish=finish, **call)
    flow, call = upgrade(shared("sd3")), dict(FAMILIES["sd3"].call)
    with pytest.raises(ValueError, match="sigmas says which steps there are"):
        flow(PROMPT, search=BestOfN(1), reward=dark, draft="hot", finish="0.6:3", sigmas=[1.0, 0.7, 0.4, 0.1], **call)
