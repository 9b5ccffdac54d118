"""PixArt-Sigma (diffusers' PixArtSigmaPipeline): a transformer with masked T5 text and sizes in bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import PixArtSigmaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import both, first, spread, take, texts, unscaled
from ttsnap.pipelines.schedule import make_schedule, refuse_flow_match

BINS: dict[int, Any] = {
    256: ASPECT_RATIO_2048_BIN,
    128: ASPECT_RATIO_1024_BIN,
    64: ASPECT_RATIO_512_BIN,
    32: ASPECT_RATIO_256_BIN,
}
"""Sizes (height, width) by aspect ratio that a transformer of a sample size was trained on."""


class PixArtSigmaDenoiser(PipelineDenoiser):
    """One call of a PixArtSigmaPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for input that the pipeline refuses.
    """

    def __init__(
        self,
        pipe: PixArtSigmaPipeline,
        *,
        negative_prompt: str | list[str] | None = "",
        num_inference_steps: int = 20,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 4.5,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        clean_caption: bool = True,
        use_resolution_binning: bool = True,
        max_sequence_length: int = 300,
    ) -> None:
        super().__init__(pipe)
        self.guidance_scale = guidance_scale
        native = self.pipe.transformer.config.sample_size
        height, width = (side or native * self.pipe.vae_scale_factor for side in (height, width))
        self._wanted = (height, width)
        if use_resolution_binning:
            if native not in BINS:
                raise ValueError(
                    f"use_resolution_binning needs a transformer of sample size {', '.join(map(str, BINS))}, this one "
                    f"has {native}; set it to False"
                )
            height, width = self.pipe.image_processor.classify_height_width_bin(height, width, ratios=BINS[native])
        self.height, self.width = height, width
        self.pipe.check_inputs(
            None if prompt_embeds is not None else "",
            height,
            width,
            negative_prompt or None,
            1,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
        )
        self._negative_prompt = "" if negative_prompt is None else negative_prompt
        self._embeds = {
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        self._clean_caption = clean_caption
        self.text_length = max_sequence_length if prompt_embeds is None else prompt_embeds.shape[1]
        refuse_flow_match(self.pipe.scheduler)
        schedule = make_schedule(
            self.pipe.scheduler, num_inference_steps, timesteps=timesteps, sigmas=sigmas, step_arguments={"eta": eta}
        )
        self._use(schedule, guided=guidance_scale > 1)

    def encode(self, prompts: Sequence[str]) -> None:
        given = self._embeds["prompt_embeds"]
        n = len(prompts) if given is None else len(given)
        text, mask, negative, negative_mask = self.pipe.encode_prompt(
            list(prompts) if given is None else None,
            self.guided,
            negative_prompt=texts(self._negative_prompt, n),
            device=self.device,
            **{name: first(value, n) for name, value in self._embeds.items()},
            clean_caption=self._clean_caption,
            max_sequence_length=self.text_length,
        )
        self._text, self._mask = text, mask.to(self.device)
        self._negative = negative
        self._negative_mask = negative_mask.to(self.device) if self.guided else negative_mask

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.transformer.config.in_channels, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, self._text.dtype, self.device, list(generators)
        )
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        channels = x.shape[1]
        text, mask = take(self._text, at), take(self._mask, at)
        if self.guided:
            text, mask = both(self._negative, self._text, at), both(self._negative_mask, self._mask, at)
            x, t = torch.cat([x, x]), torch.cat([t, t])
        out: Tensor = self.pipe.transformer(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=t,
            # Alpha's micro-conditions, which Sigma has not; stock passes the same.
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        if self.guided:
            unconditional, conditional = out.chunk(2)
            out = unconditional + self.guidance_scale * (conditional - unconditional)
        # The other half of the channels is a learned variance, which no sampler reads.
        learned = self.pipe.transformer.config.out_channels // 2 == channels
        return out[:, :channels] if learned else out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        decoded = vae.decode(unscaled(vae, x0.to(vae.dtype)), return_dict=False)[0]
        if self._wanted != (self.height, self.width):
            height, width = self._wanted
            decoded = self.pipe.image_processor.resize_and_crop_tensor(decoded, width, height)
        return self.postprocess(decoded)

    def _blocks(self) -> Any:
        return getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer).transformer_blocks

    def features(self, states: Any, x: Tensor) -> Tensor:
        patch = self.pipe.transformer.config.patch_size
        size = (x.shape[-2] // patch, x.shape[-1] // patch)
        return spread(states[-len(x) :], size)  # the conditional half


class SearchPixArtSigmaPipeline(SearchMixin, PixArtSigmaPipeline):
    """PixArtSigmaPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = PixArtSigmaDenoiser
