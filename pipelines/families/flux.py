"""FLUX.1 dev and schnell (diffusers' FluxPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import spread, take, texts, tokens
from ttsnap.pipelines.schedule import falling, make_schedule, token_shift


class FluxDenoiser(PipelineDenoiser):
    """One call of a FluxPipeline, open to search. Arguments are those of its `__call__`.

    Latents are packed tokens. Raises ValueError for schedulers that search cannot use and for what the pipeline
    refuses.
    """

    def __init__(
        self,
        pipe: FluxPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.5,
        true_cfg_scale: float = 1.0,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        max_sequence_length: int = 512,
    ) -> None:
        super().__init__(pipe)
        self.guidance_scale, self.true_cfg_scale = guidance_scale, true_cfg_scale
        height = height or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        width = width or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self.pipe.check_inputs(
            None if prompt_embeds is not None else "",
            prompt_2,
            height,
            width,
            negative_prompt=negative_prompt,
            negative_prompt_2=negative_prompt_2,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            max_sequence_length=max_sequence_length,
        )
        has_negative = negative_prompt is not None or negative_prompt_embeds is not None
        guided = true_cfg_scale > 1 and has_negative
        shapes = {tuple(e.shape) for e in (prompt_embeds, negative_prompt_embeds) if e is not None}
        if guided and len(shapes) > 1:
            raise ValueError(f"prompt_embeds and negative_prompt_embeds must have the same shape, got {shapes}")
        self._prompt_2 = prompt_2
        self._negative_texts = (negative_prompt, negative_prompt_2)
        self._embeds = (prompt_embeds, pooled_prompt_embeds)
        self._negative_embeds = (negative_prompt_embeds, negative_pooled_prompt_embeds)
        self._joint_attention_kwargs = joint_attention_kwargs or {}
        self._max_sequence_length = max_sequence_length
        self.text_length = (max_sequence_length, tokens(prompt_embeds), tokens(negative_prompt_embeds))
        patch = 2 * self.pipe.vae_scale_factor  # pixels of a token's side; the pipeline rounds down to it
        self._tokens = (height // patch, width // patch)
        self.height, self.width = self._tokens[0] * patch, self._tokens[1] * patch
        given = falling(num_inference_steps) if sigmas is None else sigmas
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            sigmas=None if self.pipe.scheduler.config.get("use_flow_sigmas") else given,
            mu=token_shift(self.pipe.scheduler, self._tokens[0] * self._tokens[1]),
        )
        self._use(schedule, guided=guided)

    def encode(self, prompts: Sequence[str]) -> None:
        given = self._embeds[0]
        n = len(prompts) if given is None else len(given)
        first = list(prompts) if given is None else None
        self._text, self._pooled, self._text_ids = self._encoded(first, self._prompt_2, self._embeds, n)
        if self.guided:
            first, second = texts(self._negative_texts[0], n), self._negative_texts[1]
            negative = self._encoded(first, second, self._negative_embeds, n)
            self._negative, self._negative_pooled, self._negative_ids = negative
        self._picture_ids = self.pipe._prepare_latent_image_ids(1, *self._tokens, self.device, self._text.dtype)

    def _encoded(self, first: Any, second: Any, embeds: Any, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings, pooled ones and position ids of these texts, or of embeddings that were given."""
        encoded: tuple[Tensor, Tensor, Tensor] = self.pipe.encode_prompt(
            prompt=first,
            prompt_2=texts(second or None, n),
            prompt_embeds=embeds[0],
            pooled_prompt_embeds=embeds[1],
            device=self.device,
            max_sequence_length=self._max_sequence_length,
            lora_scale=self._joint_attention_kwargs.get("scale"),
        )
        return encoded

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.transformer.config.in_channels // 4, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, self._text.dtype, self.device, list(generators)
        )[0]
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        conditional = self._pass("cond", x, t, take(self._text, at), take(self._pooled, at), self._text_ids)
        if not self.guided:
            return conditional
        text, pooled = take(self._negative, at), take(self._negative_pooled, at)
        unconditional = self._pass("uncond", x, t, text, pooled, self._negative_ids)
        return unconditional + self.true_cfg_scale * (conditional - unconditional)

    def _pass(self, context: str, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor, text_ids: Tensor) -> Tensor:
        network = self.pipe.transformer
        guidance = torch.full([1], self.guidance_scale, device=x.device, dtype=torch.float32).expand(len(x))
        with network.cache_context(context):
            out: Tensor = network(
                hidden_states=x,
                timestep=t.to(x.dtype) / 1000,
                guidance=guidance if network.config.guidance_embeds else None,
                pooled_projections=pooled,
                encoder_hidden_states=text,
                txt_ids=text_ids,
                img_ids=self._picture_ids,
                joint_attention_kwargs=self._joint_attention_kwargs,
                return_dict=False,
            )[0]
        return out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        size = (self.height, self.width, self.pipe.vae_scale_factor)
        latents = self.pipe._unpack_latents(self.settled(x0, vae), *size)
        latents = (latents / vae.config.scaling_factor) + (getattr(vae.config, "shift_factor", None) or 0.0)
        return self.postprocess(vae.decode(latents.to(get_module_execution_device(vae)), return_dict=False)[0])

    def _blocks(self) -> Any:
        return getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer).transformer_blocks

    def features(self, states: Any, x: Tensor) -> Tensor:
        return spread(states[1], self._tokens)


class SearchFluxPipeline(SearchMixin, FluxPipeline):
    """FluxPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = FluxDenoiser
