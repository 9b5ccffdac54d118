"""Stable Diffusion 1 and 2 (diffusers' StableDiffusionPipeline)."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import Paired, classifier_free
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, tokens
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.schedule import call_schedule
from ttsnap.pipelines.mixin import SearchMixin

READS_SCALE = "time_cond_proj_dim"
"""The setting of U-Nets with distilled guidance (LCM), which take one pass."""


def apply_settings(denoiser: PipelineDenoiser, call: SimpleNamespace) -> dict[str, Any]:
    """Set what properties of the pipeline read of a call. Returns the options of its
    encode_prompt."""
    denoiser.embedded_scale = denoiser.pipe._guidance_scale = call.guidance_scale
    denoiser.pipe._guidance_rescale = call.guidance_rescale
    denoiser.pipe._clip_skip = call.clip_skip
    denoiser.pipe._cross_attention_kwargs = call.cross_attention_kwargs
    scale = (call.cross_attention_kwargs or {}).get("scale")
    return {"num_images_per_prompt": 1, "lora_scale": scale, "clip_skip": call.clip_skip}


def guidance_of(pipe: Any) -> Paired:
    """The guidance of a pipeline with its settings applied."""
    rescale = pipe.guidance_rescale
    combine = partial(_rescaled, rescale) if rescale > 0 else classifier_free
    return Paired(pipe.guidance_scale, pipe.do_classifier_free_guidance, combine)


def unet_pass(
    denoiser: PipelineDenoiser, x: Tensor, t: Tensor, text: Tensor, added: Any = None
) -> Tensor:
    """One pass of the U-Net. added: further conditions."""
    embedded, size = None, denoiser.net.config.time_cond_proj_dim
    if size is not None and denoiser.embedded_scale is not None:
        scales = torch.tensor(denoiser.embedded_scale - 1).repeat(len(x))
        embedded = denoiser.pipe.get_guidance_scale_embedding(scales, embedding_dim=size).to(
            x.device, x.dtype
        )
    return denoiser.forward(
        x,
        t,
        encoder_hidden_states=text,
        timestep_cond=embedded,
        cross_attention_kwargs=denoiser.pipe.cross_attention_kwargs,
        added_cond_kwargs=added,
    )


def _rescaled(rescale: float, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    out = classifier_free(unconditional, conditional, scale)
    rescaled: Tensor = rescale_noise_cfg(out, conditional, guidance_rescale=rescale)
    return rescaled


class StableDiffusionDenoiser(PipelineDenoiser):
    """One call of a StableDiffusionPipeline."""

    network = "unet"
    blocks = None
    encodes_apart = True
    reads_scale = READS_SCALE
    honours = (
        "height width num_inference_steps timesteps sigmas guidance_scale negative_prompt eta"
        " prompt_embeds negative_prompt_embeds cross_attention_kwargs guidance_rescale clip_skip"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        height, width = self.native_size(call.height, call.width)
        self.layout = Plain(height, width)
        self.inputs = EncoderInputs.of(vars(call), **apply_settings(self, call))
        self.check_inputs(call, height, width)
        self.text_length = tokens(call.prompt_embeds)
        self.set_up(call_schedule(self.pipe.scheduler, call), guidance_of(self.pipe))

    def native_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        if height and width:
            return height, width
        size = self.net.config.sample_size
        sides = (size, size) if isinstance(size, int) else size
        height, width = (side * self.pipe.vae_scale_factor for side in sides)
        return height, width

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        return unet_pass(self, x, t, *texts)


class SearchStableDiffusionPipeline(SearchMixin, StableDiffusionPipeline):
    """StableDiffusionPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = StableDiffusionDenoiser
