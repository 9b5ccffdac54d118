"""Z-Image (diffusers' ZImagePipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor

from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import Joined
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, texts, tokens
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.schedule import flow_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin


class ZImageDenoiser(PipelineDenoiser):
    """One call of a ZImagePipeline.

    Steps beyond `cfg_truncation` take one pass instead of two; prices count two for all.
    """

    blocks = "layers"
    noise_dtype = torch.float32
    honours = (
        "height width num_inference_steps sigmas guidance_scale cfg_normalization cfg_truncation"
        " negative_prompt prompt_embeds negative_prompt_embeds joint_attention_kwargs"
        " max_sequence_length"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        height, width = call.height or 1024, call.width or 1024
        multiple = self.pipe.vae_scale_factor * 2
        if height % multiple or width % multiple:
            raise ValueError(
                f"height and width must be divisible by {multiple}, got {height} and {width}"
            )
        self.layout = Plain(height, width)
        # encode_prompt counts prompts, also where there are embeddings.
        counted = {} if call.prompt_embeds is None else {"prompt": ""}
        self.inputs = EncoderInputs.of(
            {**vars(call), **counted}, max_sequence_length=call.max_sequence_length
        )
        self._joint_attention_kwargs = call.joint_attention_kwargs
        given = (tokens(call.prompt_embeds), tokens(call.negative_prompt_embeds))
        self.text_length = (
            call.max_sequence_length,
            *(texts(call.negative_prompt, 1) or ()),
            *given,
        )
        scale = call.guidance_scale
        if call.prompt_embeds is not None and call.negative_prompt_embeds is None and scale > 0:
            raise ValueError(
                "prompt_embeds need negative_prompt_embeds for classifier-free guidance"
            )
        if call.sigmas is None:
            # make_schedule refuses fewer
            call.sigmas = get_default_z_image_sigmas(max(1, call.num_inference_steps))
        self._tokens = (height // multiple) * (width // multiple)
        mu = token_shift(self.pipe.scheduler, self._tokens)
        schedule = flow_schedule(self.pipe.scheduler, call, mu)
        # The pipeline compares Python numbers, made of times in float32.
        times = ((1000 - schedule.timesteps.float()) / 1000).tolist()
        last = 1.0 if call.cfg_truncation is None else float(call.cfg_truncation)
        at = tuple(scale > 0 and (last > 1 or time <= last) for time in times)
        combine = partial(limited, float(call.cfg_normalization or 0.0))
        self.set_up(schedule, Joined(scale, any(at), combine, at))

    @property
    def image_tokens(self) -> slice:
        return slice(0, self._tokens)  # before the text

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        (text,) = texts
        out = self.forward(
            list(x.to(self.net.dtype).unsqueeze(2).unbind(0)),
            (1000 - t) / 1000,
            text,
            joint_attention_kwargs=self._joint_attention_kwargs,
        )
        return -torch.stack([row.float() for row in out]).squeeze(2)


def limited(limit: float, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """conditional + scale * (conditional - unconditional), each row at most `limit` times the norm
    of the conditional row. 0 is no limit."""
    guided = conditional + scale * (conditional - unconditional)
    if limit <= 0:
        return guided
    return torch.stack([_cut(*rows, limit) for rows in zip(guided, conditional, strict=True)])


def _cut(guided: Tensor, conditional: Tensor, limit: float) -> Tensor:
    most, norm = torch.linalg.vector_norm(conditional) * limit, torch.linalg.vector_norm(guided)
    return torch.where(norm > most, guided * (most / norm), guided)


class SearchZImagePipeline(SearchMixin, ZImagePipeline):
    """ZImagePipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = ZImageDenoiser
