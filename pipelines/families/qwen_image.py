"""Qwen-Image (diffusers' QwenImagePipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import spread, take, texts, tokens
from ttsnap.pipelines.schedule import falling, make_schedule, token_shift


class QwenImageDenoiser(PipelineDenoiser):
    """One call of a QwenImagePipeline, open to search. Arguments are those of its `__call__`.

    Latents are packed tokens. Raises ValueError for schedulers that search cannot use and for what the pipeline
    refuses.
    """

    def __init__(
        self,
        pipe: QwenImagePipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        true_cfg_scale: float = 4.0,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_embeds_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds_mask: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        max_sequence_length: int = 512,
    ) -> None:
        super().__init__(pipe)
        self.true_cfg_scale = true_cfg_scale
        height = height or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        width = width or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self.pipe.check_inputs(
            None if prompt_embeds is not None else "",
            height,
            width,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_embeds_mask=prompt_embeds_mask,
            negative_prompt_embeds_mask=negative_prompt_embeds_mask,
            max_sequence_length=max_sequence_length,
        )
        distilled = self.pipe.transformer.config.guidance_embeds
        if distilled and guidance_scale is None:
            raise ValueError("guidance_scale is required for guidance-distilled model.")
        self.guidance_scale = guidance_scale if distilled else None
        self._negative_prompt = negative_prompt
        self._embeds = (prompt_embeds, prompt_embeds_mask)
        self._negative_embeds = (negative_prompt_embeds, negative_prompt_embeds_mask)
        self._attention_kwargs = attention_kwargs or {}
        self._max_sequence_length = max_sequence_length
        given = (tokens(prompt_embeds), tokens(negative_prompt_embeds))
        self.text_length = (max_sequence_length, *(texts(negative_prompt, 1) or ()), *given)
        patch = 2 * self.pipe.vae_scale_factor  # pixels of a token's side; the pipeline rounds down to it
        self._tokens = (height // patch, width // patch)
        self.height, self.width = self._tokens[0] * patch, self._tokens[1] * patch
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            sigmas=falling(num_inference_steps) if sigmas is None else sigmas,
            mu=token_shift(self.pipe.scheduler, self._tokens[0] * self._tokens[1]),
        )
        has_negative = negative_prompt is not None or negative_prompt_embeds is not None
        self._use(schedule, guided=true_cfg_scale > 1 and has_negative)

    def encode(self, prompts: Sequence[str]) -> None:
        given = self._embeds[0]
        n = len(prompts) if given is None else len(given)
        self._text, self._mask = self._encoded(list(prompts) if given is None else None, self._embeds)
        if self.guided:
            negative = self._encoded(texts(self._negative_prompt, n), self._negative_embeds)
            self._negative, self._negative_mask = negative

    def _encoded(self, prompts: list[str] | None, embeds: Any) -> tuple[Tensor, Tensor | None]:
        """Embeddings with their mask, None where no text is padded. One call, since it pads to the longest text."""
        encoded: tuple[Tensor, Tensor | None] = self.pipe.encode_prompt(
            prompt=prompts,
            prompt_embeds=embeds[0],
            prompt_embeds_mask=embeds[1],
            device=self.device,
            max_sequence_length=self._max_sequence_length,
        )
        return encoded

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.transformer.config.in_channels // 4, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, self._text.dtype, self.device, list(generators)
        )
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        conditional = self._pass("cond", x, t, take(self._text, at), take(self._mask, at))
        if not self.guided:
            return conditional
        unconditional = self._pass("uncond", x, t, take(self._negative, at), take(self._negative_mask, at))
        combined = unconditional + self.true_cfg_scale * (conditional - unconditional)
        norm, too_large = (torch.norm(v, dim=-1, keepdim=True) for v in (conditional, combined))
        rescaled: Tensor = combined * (norm / too_large)
        return rescaled

    def _pass(self, context: str, x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        network, guidance = self.pipe.transformer, None
        if self.guidance_scale is not None:
            guidance = torch.full([1], self.guidance_scale, device=x.device, dtype=torch.float32).expand(len(x))
        with network.cache_context(context):
            out: Tensor = network(
                hidden_states=x,
                timestep=t.to(x.dtype) / 1000,
                guidance=guidance,
                encoder_hidden_states_mask=mask,
                encoder_hidden_states=text,
                img_shapes=[[(1, *self._tokens)]] * len(x),
                attention_kwargs=self._attention_kwargs,
                return_dict=False,
            )[0]
        return out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        c = vae.config
        if "latents_mean" not in c:
            raise ValueError(f"{type(vae).__name__} cannot decode Qwen-Image's latents; use an AutoencoderKLQwenImage")
        size = (self.height, self.width, self.pipe.vae_scale_factor)
        latents = self.pipe._unpack_latents(x0, *size).to(vae.dtype)  # (N, C, 1, h, w): a film of one picture
        mean, std = (
            torch.tensor(v).view(1, c.z_dim, 1, 1, 1).to(latents.device, latents.dtype)
            for v in (c.latents_mean, c.latents_std)
        )
        # 1 / (1 / std) rounds as the pipeline does.
        return self.postprocess(vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0][:, :, 0])

    def _blocks(self) -> Any:
        return getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer).transformer_blocks

    def features(self, states: Any, x: Tensor) -> Tensor:
        return spread(states[1], self._tokens)


class SearchQwenImagePipeline(SearchMixin, QwenImagePipeline):
    """QwenImagePipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = QwenImageDenoiser
