"""Stable Diffusion 3 and 3.5 (diffusers' StableDiffusion3Pipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import both, spread, take, texts, tokens
from ttsnap.pipelines.schedule import make_schedule


class StableDiffusion3Denoiser(PipelineDenoiser):
    """One call of a StableDiffusion3Pipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

    def __init__(
        self,
        pipe: StableDiffusion3Pipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.0,
        prompt_2: str | list[str] | None = None,
        prompt_3: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        negative_prompt_3: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        max_sequence_length: int = 256,
        mu: float | None = None,
    ) -> None:
        super().__init__(pipe)
        self.guidance_scale = guidance_scale
        self.height = height or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self.width = width or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self.pipe.check_inputs(
            None if prompt_embeds is not None else "",
            None,
            None,
            self.height,
            self.width,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            max_sequence_length=max_sequence_length,
            callback_on_step_end_tensor_inputs=[],
        )
        self._texts = {
            "prompt_2": prompt_2,
            "prompt_3": prompt_3,
            "negative_prompt": negative_prompt,
            "negative_prompt_2": negative_prompt_2,
            "negative_prompt_3": negative_prompt_3,
        }
        self._embeds = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
        }
        self._joint_attention_kwargs, self._clip_skip = joint_attention_kwargs, clip_skip
        self._max_sequence_length = max_sequence_length
        self.text_length = (max_sequence_length, tokens(prompt_embeds))
        extra: dict[str, Any] = {}
        if self.pipe.scheduler.config.get("use_dynamic_shifting"):
            extra["mu"] = self._shift() if mu is None else mu
        elif mu is not None:
            extra["mu"] = mu
        schedule = make_schedule(self.pipe.scheduler, num_inference_steps, sigmas=sigmas, scaled=False, **extra)
        self._use(schedule, guided=guidance_scale > 1)

    def _shift(self) -> float:
        c = self.pipe.scheduler.config
        patch, scale = self.pipe.transformer.config.patch_size, self.pipe.vae_scale_factor
        tokens = (self.height // scale // patch) * (self.width // scale // patch)
        limits = (c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096))
        return float(calculate_shift(tokens, *limits, c.get("base_shift", 0.5), c.get("max_shift", 1.16)))

    def encode(self, prompts: Sequence[str]) -> None:
        given = self._embeds["prompt_embeds"]
        n = len(prompts) if given is None else len(given)
        self._text, self._negative, self._pooled, self._negative_pooled = self.pipe.encode_prompt(
            prompt=list(prompts) if given is None else None,
            **{"prompt_2": None, "prompt_3": None, **{k: texts(v, n) for k, v in self._texts.items()}},
            **self._embeds,
            do_classifier_free_guidance=self.guided,
            device=self.device,
            clip_skip=self._clip_skip,
            lora_scale=(self._joint_attention_kwargs or {}).get("scale"),
            max_sequence_length=self._max_sequence_length,
        )

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.transformer.config.in_channels, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, self._text.dtype, self.device, list(generators)
        )
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        text, pooled = take(self._text, at), take(self._pooled, at)
        if self.guided:
            text, pooled = both(self._negative, self._text, at), both(self._negative_pooled, self._pooled, at)
            x, t = torch.cat([x, x]), torch.cat([t, t])
        out: Tensor = self.pipe.transformer(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            joint_attention_kwargs=self._joint_attention_kwargs,
            return_dict=False,
        )[0]
        if not self.guided:
            return out
        unconditional, conditional = out.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        latents = (self.settled(x0, vae) / vae.config.scaling_factor) + (vae.config.shift_factor or 0.0)
        return self.postprocess(vae.decode(latents, return_dict=False)[0])

    def _blocks(self) -> Any:
        return getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer).transformer_blocks

    def features(self, states: Any, x: Tensor) -> Tensor:
        patch = self.pipe.transformer.config.patch_size
        size = (x.shape[-2] // patch, x.shape[-1] // patch)
        return spread(states[1][-len(x) :], size)  # the conditional half


class SearchStableDiffusion3Pipeline(SearchMixin, StableDiffusion3Pipeline):
    """StableDiffusion3Pipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = StableDiffusion3Denoiser
