"""Stable Diffusion 1 and 2 (diffusers' StableDiffusionPipeline), and what it shares with SDXL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import both, first, take, texts, unscaled
from ttsnap.pipelines.schedule import make_schedule, refuse_flow_match


class UNetDenoiser(PipelineDenoiser):
    """A guided U-Net. A family defines `encode`, which sets `_text` and `_negative`, and `pixels`."""

    network = "unet"
    _text: Tensor
    _negative: Tensor

    def _settle(
        self,
        num_inference_steps: int,
        timesteps: list[int] | None,
        sigmas: list[float] | None,
        eta: float,
        guidance_scale: float,
        guidance_rescale: float,
        clip_skip: int | None,
        cross_attention_kwargs: dict[str, Any] | None,
    ) -> None:
        """Give the pipeline these settings, which its properties read, and lay out the schedule."""
        self.pipe._guidance_scale, self.pipe._guidance_rescale = guidance_scale, guidance_rescale
        self.pipe._clip_skip, self.pipe._cross_attention_kwargs = clip_skip, cross_attention_kwargs
        refuse_flow_match(self.pipe.scheduler)
        schedule = make_schedule(
            self.pipe.scheduler, num_inference_steps, timesteps=timesteps, sigmas=sigmas, step_arguments={"eta": eta}
        )
        self._use(schedule, guided=self.pipe.do_classifier_free_guidance)

    @property
    def _lora_scale(self) -> float | None:
        return cast("float | None", (self.pipe.cross_attention_kwargs or {}).get("scale"))

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.unet.config.in_channels, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, self._text.dtype, self.device, list(generators)
        )
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        text, seen = take(self._text, at), x
        if self.guided:
            text = both(self._negative, self._text, at)
            seen, t = torch.cat([x, x]), torch.cat([t, t])
        out: Tensor = self.pipe.unet(
            seen,
            t,
            encoder_hidden_states=text,
            timestep_cond=self._embedded_guidance(x),
            cross_attention_kwargs=self.pipe.cross_attention_kwargs,
            added_cond_kwargs=self._added(at),
            return_dict=False,
        )[0]
        if not self.guided:
            return out
        unconditional, conditional = out.chunk(2)
        out = unconditional + self.pipe.guidance_scale * (conditional - unconditional)
        rescale = self.pipe.guidance_rescale
        return rescale_noise_cfg(out, conditional, guidance_rescale=rescale) if rescale > 0 else out

    def _embedded_guidance(self, x: Tensor) -> Tensor | None:
        """What U-Nets with the guidance distilled into them (LCM) read of its scale."""
        size = self.pipe.unet.config.time_cond_proj_dim
        if size is None:
            return None
        scales = torch.tensor(self.pipe.guidance_scale - 1).repeat(len(x))
        embedded: Tensor = self.pipe.get_guidance_scale_embedding(scales, embedding_dim=size)
        return embedded.to(x.device, x.dtype)

    def _added(self, at: Tensor) -> dict[str, Tensor] | None:
        """Further conditions of rows `at` of the prompts."""
        return None


class StableDiffusionDenoiser(UNetDenoiser):
    """One call of a StableDiffusionPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for input that the pipeline refuses.
    """

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
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
    ) -> None:
        super().__init__(pipe)
        if not height or not width:
            size = self.pipe.unet.config.sample_size
            sides = (size, size) if isinstance(size, int) else size
            height, width = (side * self.pipe.vae_scale_factor for side in sides)
        self.height, self.width = height, width
        self.pipe.check_inputs(
            None if prompt_embeds is not None else "",
            height,
            width,
            None,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        self._negative_prompt = negative_prompt
        self._embeds, self._negative_embeds = prompt_embeds, negative_prompt_embeds
        self.text_length = None if prompt_embeds is None else prompt_embeds.shape[1]
        self._settle(
            num_inference_steps,
            timesteps,
            sigmas,
            eta,
            guidance_scale,
            guidance_rescale,
            clip_skip,
            cross_attention_kwargs,
        )

    def encode(self, prompts: Sequence[str]) -> None:
        given = self._embeds
        n = len(prompts) if given is None else len(given)
        self._text, self._negative = self.pipe.encode_prompt(
            list(prompts) if given is None else None,
            self.device,
            1,
            self.guided,
            texts(self._negative_prompt, n),
            prompt_embeds=given,
            negative_prompt_embeds=first(self._negative_embeds, n),
            lora_scale=self._lora_scale,
            clip_skip=self.pipe.clip_skip,
        )

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        # The safety checker sees the pictures that are returned (output.py).
        return self.postprocess(vae.decode(unscaled(vae, x0.to(vae.dtype)), return_dict=False)[0])


class SearchStableDiffusionPipeline(SearchMixin, StableDiffusionPipeline):
    """StableDiffusionPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = StableDiffusionDenoiser
