"""Stable Diffusion 3 and 3.5 (diffusers' StableDiffusion3Pipeline): encode, initial latents,
predict, decode."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import Paired
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, tokens
from ttsnap.pipelines.latents.layouts import Plain, unscaled
from ttsnap.pipelines.latents.schedule import make_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.sides import check_sides


class StableDiffusion3Denoiser(PipelineDenoiser):
    """One call of a StableDiffusion3Pipeline."""

    encodes_apart = True
    honours = (
        "height width num_inference_steps sigmas guidance_scale prompt_2 prompt_3 negative_prompt"
        " negative_prompt_2 negative_prompt_3 prompt_embeds negative_prompt_embeds"
        " pooled_prompt_embeds negative_pooled_prompt_embeds joint_attention_kwargs clip_skip"
        " max_sequence_length mu"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        size = self.native_size(call.height, call.width)
        check_sides(self.net.config, self.pipe.vae_scale_factor, *size)
        self.layout = Plain(*size)
        self._joint_attention_kwargs = call.joint_attention_kwargs
        scale = (call.joint_attention_kwargs or {}).get("scale")
        options = {
            "clip_skip": call.clip_skip,
            "max_sequence_length": call.max_sequence_length,
            "lora_scale": scale,
        }
        self.inputs = EncoderInputs.of(vars(call), **options)
        self.check_inputs(call, *size)
        self.text_length = (call.max_sequence_length, tokens(call.prompt_embeds))
        mu = call.mu
        if mu is None and self.pipe.scheduler.config.get("use_dynamic_shifting"):
            patch, factor = self.net.config.patch_size, self.pipe.vae_scale_factor
            mu = token_shift(
                self.pipe.scheduler, math.prod(side // factor // patch for side in size), most=1.16
            )
        schedule = make_schedule(
            self.pipe.scheduler,
            call.num_inference_steps,
            sigmas=call.sigmas,
            scaled=False,
            **({} if mu is None else {"mu": mu}),
        )
        self.set_up(schedule, Paired(call.guidance_scale, call.guidance_scale > 1))

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, pooled = texts
        return self.forward(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            joint_attention_kwargs=self._joint_attention_kwargs,
        )

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        return self.postprocess(
            vae.decode(unscaled(vae, self.settled(x0, vae)), return_dict=False)[0]
        )


class SearchStableDiffusion3Pipeline(SearchMixin, StableDiffusion3Pipeline):
    """StableDiffusion3Pipeline whose call also takes `search=`, `reward=`, `budget=` and
    friends."""

    denoiser_class = StableDiffusion3Denoiser
