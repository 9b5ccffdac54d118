"""Stable Diffusion 1 and 2 (diffusers' StableDiffusionPipeline)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.families import unet
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.rows import tokens
from ttsnap.pipelines.latents.schedule import call_schedule
from ttsnap.pipelines.mixin import SearchMixin


class StableDiffusionDenoiser(PipelineDenoiser):
    """One call of a StableDiffusionPipeline."""

    network = "unet"
    blocks = None
    encodes_apart = True
    reads_scale = unet.READS_SCALE
    honours = (
        "height width num_inference_steps timesteps sigmas guidance_scale negative_prompt eta prompt_embeds "
        "negative_prompt_embeds cross_attention_kwargs guidance_rescale clip_skip"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        height, width = self.native_size(call.height, call.width)
        self.layout = Plain(height, width)
        self.inputs = EncoderInputs.of(vars(call), **unet.settle(self, call))
        self.check_inputs(call, height, width)
        self.text_length = tokens(call.prompt_embeds)
        self.set_up(call_schedule(self.pipe.scheduler, call), unet.guidance(self.pipe))

    def native_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        if height and width:
            return height, width
        size = self.net.config.sample_size
        sides = (size, size) if isinstance(size, int) else size
        height, width = (side * self.pipe.vae_scale_factor for side in sides)
        return height, width

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        return unet.passed(self, x, t, *texts)


class SearchStableDiffusionPipeline(SearchMixin, StableDiffusionPipeline):
    """StableDiffusionPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = StableDiffusionDenoiser
