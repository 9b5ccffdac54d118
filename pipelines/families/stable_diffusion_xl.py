"""Stable Diffusion XL (diffusers' StableDiffusionXLPipeline): two text encoders, picture sizes as
conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.families.stable_diffusion import (
    READS_SCALE,
    apply_settings,
    guidance_of,
    unet_pass,
)
from ttsnap.pipelines.guidance import Texts
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, tokens
from ttsnap.pipelines.latents.layouts import Plain, unscaled
from ttsnap.pipelines.latents.schedule import call_schedule
from ttsnap.pipelines.mixin import SearchMixin

Size = tuple[int, int]


class StableDiffusionXLDenoiser(PipelineDenoiser):
    """One call of a StableDiffusionXLPipeline.

    `denoising_end` is not honoured: it leaves latents for a refiner, which no reward can score.
    """

    network = "unet"
    blocks = None
    encodes_apart = True
    reads_scale = READS_SCALE
    honours = (
        "prompt_2 height width num_inference_steps timesteps sigmas guidance_scale negative_prompt"
        " negative_prompt_2 eta prompt_embeds negative_prompt_embeds pooled_prompt_embeds"
        " negative_pooled_prompt_embeds cross_attention_kwargs guidance_rescale original_size"
        " crops_coords_top_left target_size negative_original_size negative_crops_coords_top_left"
        " negative_target_size clip_skip"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        size = self.native_size(call.height, call.width)
        self.layout = Plain(*size)
        self.inputs = EncoderInputs.of(vars(call), **apply_settings(self, call))
        self.check_inputs(call, *size)
        self.text_length = tokens(call.prompt_embeds)
        self._ids = (
            call.original_size or size,
            call.crops_coords_top_left,
            call.target_size or size,
        )
        negative = (
            call.negative_original_size,
            call.negative_crops_coords_top_left,
            call.negative_target_size,
        )
        self._negative_ids = self._ids if None in negative else negative
        self.set_up(call_schedule(self.pipe.scheduler, call), guidance_of(self.pipe))

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        # The stock call repeats the pair (negative, positive) of sizes, which mixes the two up in
        # batches of several pictures. Here every row has its own, as in a stock call for that
        # picture alone.
        super().encode(prompts)
        positive, negative = self.texts
        unwanted = None if negative is None else self._sized(negative, self._negative_ids)
        self.texts = Texts(self._sized(positive, self._ids), unwanted)

    def _sized(self, texts: Sequence[Tensor], sizes: tuple[Size, Size, Size]) -> list[Tensor]:
        """The texts with the original size, the crop and the target size (P, 6), as the U-Net reads
        them."""
        (text, pooled), encoder = texts, self.pipe.text_encoder_2
        width = int(pooled.shape[-1]) if encoder is None else encoder.config.projection_dim
        ids: Tensor = self.pipe._get_add_time_ids(
            *(tuple(size) for size in sizes), dtype=text.dtype, text_encoder_projection_dim=width
        )
        return [text, pooled, ids.to(self.device).expand(len(text), -1)]

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, pooled, sizes = texts
        return unet_pass(
            self, x, t, text, {"text_embeds": pooled.to(sizes.device), "time_ids": sizes}
        )

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        with without_overflow(vae) as widened:
            latents = unnormalised(vae, x0.to(vae.dtype) if widened else self.settled(x0, vae))
            decoded = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return self.postprocess(self._marked(vae, decoded))

    def _marked(self, vae: Any, decoded: Tensor) -> Tensor:
        """Images with the pipeline's invisible watermark, where it has one. Previews get none."""
        if self.pipe.watermark is None or vae is not self.pipe.vae or decoded.is_meta:
            return decoded
        marked: Tensor = self.pipe.watermark.apply_watermark(decoded)
        return marked.to(decoded.device)


def unnormalised(vae: Any, latents: Tensor) -> Tensor:
    """Latents as `vae` decodes them. Some VAEs (Playground 2.5) have a mean and a deviation per
    channel."""
    c = vae.config
    known = c.get("latents_mean"), c.get("latents_std")
    if None in known:
        return unscaled(vae, latents)
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in known)
    return cast(Tensor, latents * deviation / c.scaling_factor + mean)


@contextmanager
def without_overflow(vae: Any) -> Iterator[bool]:
    """Decode in single precision where half would overflow, as `force_upcast` of SDXL's VAE says.
    Yields whether."""
    half = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if half:
        vae.to(dtype=torch.float32)
    try:
        yield half
    finally:
        if half:
            vae.to(dtype=torch.float16)


class SearchStableDiffusionXLPipeline(SearchMixin, StableDiffusionXLPipeline):
    """StableDiffusionXLPipeline whose call also takes `search=`, `reward=`, `budget=` and
    friends."""

    denoiser_class = StableDiffusionXLDenoiser
