"""Sana (diffusers' SanaPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import SanaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from torch import Tensor

from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import Paired
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, tokens
from ttsnap.pipelines.latents.layouts import Binned, without_variance
from ttsnap.pipelines.latents.schedule import call_schedule
from ttsnap.pipelines.mixin import SearchMixin

# By the transformer's sample_size.
BINS = {
    16: ASPECT_RATIO_512_BIN,
    32: ASPECT_RATIO_1024_BIN,
    64: ASPECT_RATIO_2048_BIN,
    128: ASPECT_RATIO_4096_BIN,
}


class SanaDenoiser(PipelineDenoiser):
    """One call of a SanaPipeline."""

    halves = True
    encodes_apart = True
    noise_dtype = torch.float32
    honours = (
        "negative_prompt num_inference_steps timesteps sigmas guidance_scale height width eta"
        " prompt_embeds prompt_attention_mask negative_prompt_embeds negative_prompt_attention_mask"
        " clean_caption use_resolution_binning attention_kwargs max_sequence_length"
        " complex_human_instruction"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        self._attention_kwargs = call.attention_kwargs
        bins = BINS if call.use_resolution_binning else None
        self.layout = Binned.of(call.height, call.width, self.pipe, bins)
        options = {
            "clean_caption": call.clean_caption,
            "max_sequence_length": call.max_sequence_length,
            "complex_human_instruction": call.complex_human_instruction,
            "lora_scale": (call.attention_kwargs or {}).get("scale"),
        }
        texts = {**vars(call), "negative_prompt": call.negative_prompt or ""}
        self.inputs = EncoderInputs.of(texts, **options)
        # The stock default, "", counts as given there, which would refuse all negative embeddings.
        self.check_inputs(
            call,
            self.layout.height,
            self.layout.width,
            negative_prompt=call.negative_prompt or None,
        )
        self.text_length = (call.max_sequence_length, tokens(call.prompt_embeds))
        guidance = Paired(call.guidance_scale, call.guidance_scale > 1)
        self.set_up(call_schedule(self.pipe.scheduler, call, scaled=False), guidance)

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        (text, mask), dtype = texts, self.net.dtype
        out = self.forward(
            x.to(dtype),
            encoder_hidden_states=text.to(dtype),
            encoder_attention_mask=mask,
            timestep=t * self.net.config.timestep_scale,
            attention_kwargs=self._attention_kwargs,
        )
        return without_variance(out.float(), x, self.net)


class SearchSanaPipeline(SearchMixin, SanaPipeline):
    """SanaPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = SanaDenoiser
