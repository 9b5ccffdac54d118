"""Qwen-Image (diffusers' QwenImagePipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import TwoCalls, as_long
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, texts, tokens
from ttsnap.pipelines.latents.layouts import Packed
from ttsnap.pipelines.latents.schedule import flow_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin


class QwenImageDenoiser(PipelineDenoiser):
    """One call of a QwenImagePipeline. Latents are packed tokens."""

    layout: Packed
    reads_scale = "guidance_embeds"
    honours = (
        "height width num_inference_steps sigmas guidance_scale true_cfg_scale negative_prompt"
        " prompt_embeds prompt_embeds_mask negative_prompt_embeds negative_prompt_embeds_mask"
        " attention_kwargs max_sequence_length"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        self.embedded_scale = call.guidance_scale
        size = self.native_size(call.height, call.width)
        self.layout = Packed.of(*size, self.pipe.vae_scale_factor)
        options = {"max_sequence_length": call.max_sequence_length}
        self.inputs, self.negative_inputs = EncoderInputs.both(vars(call), **options)
        self.check_inputs(call, *size)
        if self.net.config.guidance_embeds and call.guidance_scale is None:
            raise ValueError("guidance_scale is required for guidance-distilled model.")
        self._attention_kwargs = call.attention_kwargs or {}
        given = (tokens(call.prompt_embeds), tokens(call.negative_prompt_embeds))
        self.text_length = (
            call.max_sequence_length,
            *(texts(call.negative_prompt, 1) or ()),
            *given,
        )
        has_negative = call.negative_prompt is not None or call.negative_prompt_embeds is not None
        guidance = TwoCalls(call.true_cfg_scale, call.true_cfg_scale > 1 and has_negative, as_long)
        mu = token_shift(self.pipe.scheduler, self.layout.tokens)
        self.set_up(flow_schedule(self.pipe.scheduler, call, mu), guidance)

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, mask = texts  # the mask is None where no text is padded
        return self.forward(
            hidden_states=x,
            timestep=t.to(x.dtype) / 1000,
            guidance=self.embedded(x),
            encoder_hidden_states_mask=mask,
            encoder_hidden_states=text,
            img_shapes=[[(1, self.layout.rows, self.layout.columns)]] * len(x),
            attention_kwargs=self._attention_kwargs,
        )

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        c = vae.config
        if "latents_mean" not in c:
            raise ValueError(
                f"{type(vae).__name__} cannot decode Qwen-Image's latents; use an"
                " AutoencoderKLQwenImage"
            )
        size = (self.layout.height, self.layout.width, self.pipe.vae_scale_factor)
        # (N, C, 1, h, w): a film of one picture
        latents = self.pipe._unpack_latents(x0, *size).to(vae.dtype)
        mean, std = (
            torch.tensor(v).view(1, c.z_dim, 1, 1, 1).to(latents.device, latents.dtype)
            for v in (c.latents_mean, c.latents_std)
        )
        # 1 / (1 / std) rounds as the pipeline does.
        return self.postprocess(
            vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
        )


class SearchQwenImagePipeline(SearchMixin, QwenImagePipeline):
    """QwenImagePipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = QwenImageDenoiser
