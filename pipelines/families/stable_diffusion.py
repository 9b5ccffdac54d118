"""Stable Diffusion 1 and 2 (diffusers' StableDiffusionPipeline)."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.families import unet
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.rows import tokens
from ttsnap.pipelines.latents.schedule import scaled_schedule
from ttsnap.pipelines.mixin import SearchMixin


class StableDiffusionDenoiser(PipelineDenoiser):
    """One call of a StableDiffusionPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for input that the pipeline refuses.
    """

    network = "unet"
    blocks = None
    encodes_apart = True
    reads_scale = unet.READS_SCALE

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        eta: float = 0.0,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        cross_attention_kwargs: dict[str, object] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
    ) -> None:
        super().__init__(pipe)
        if not height or not width:
            size = self.pipe.unet.config.sample_size
            sides = (size, size) if isinstance(size, int) else size
            height, width = (side * self.pipe.vae_scale_factor for side in sides)
        self.layout = Plain(height, width)
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        options = unet.settle(self, guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)
        self.inputs = EncoderInputs({"negative_prompt": negative_prompt}, embeds, options)
        self.pipe.check_inputs(self.inputs.checked, height, width, None, negative_prompt, **embeds)
        self.text_length = tokens(prompt_embeds)
        schedule = scaled_schedule(self.pipe.scheduler, num_inference_steps, timesteps, sigmas, eta)
        self.set_up(schedule, unet.guidance(self.pipe))

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        return unet.passed(self, x, t, *texts)


class SearchStableDiffusionPipeline(SearchMixin, StableDiffusionPipeline):
    """StableDiffusionPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = StableDiffusionDenoiser
