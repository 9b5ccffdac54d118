"""Z-Image (diffusers' ZImagePipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import Joined
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.rows import texts, tokens
from ttsnap.pipelines.latents.schedule import make_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin


class ZImageDenoiser(PipelineDenoiser):
    """One call of a ZImagePipeline, open to search. Arguments are those of its `__call__`.

    Steps beyond `cfg_truncation` take one pass instead of two; prices count two for all.
    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

    blocks = "layers"
    noise_dtype = torch.float32

    def __init__(
        self,
        pipe: ZImagePipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        guidance_scale: float = 5.0,
        cfg_normalization: bool | float = False,
        cfg_truncation: float | None = 1.0,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: list[Tensor] | None = None,
        negative_prompt_embeds: list[Tensor] | None = None,
        joint_attention_kwargs: dict[str, object] | None = None,
        max_sequence_length: int = 512,
    ) -> None:
        super().__init__(pipe)
        height, width = height or 1024, width or 1024
        multiple = self.pipe.vae_scale_factor * 2
        if height % multiple or width % multiple:
            raise ValueError(f"height and width must be divisible by {multiple}, got {height} and {width}")
        self.layout = Plain(height, width)
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        options = {"max_sequence_length": max_sequence_length}
        counted = {} if prompt_embeds is None else {"prompt": ""}  # the pipeline counts them beside embeddings, too
        self.inputs = EncoderInputs({"negative_prompt": negative_prompt, **counted}, embeds, options)
        self._joint_attention_kwargs = joint_attention_kwargs
        given = (tokens(prompt_embeds), tokens(negative_prompt_embeds))
        self.text_length = (max_sequence_length, *(texts(negative_prompt, 1) or ()), *given)
        if prompt_embeds is not None and negative_prompt_embeds is None and guidance_scale > 0:
            raise ValueError("prompt_embeds need negative_prompt_embeds for classifier-free guidance")
        mu = token_shift(self.pipe.scheduler, (height // multiple) * (width // multiple))
        if sigmas is None:
            sigmas = get_default_z_image_sigmas(max(1, num_inference_steps))  # make_schedule refuses fewer
        schedule = make_schedule(self.pipe.scheduler, num_inference_steps, sigmas=sigmas, mu=mu)
        # As the pipeline compares them: Python's numbers, of times in float32.
        times = ((1000 - schedule.timesteps.float()) / 1000).tolist()
        last = 1.0 if cfg_truncation is None else float(cfg_truncation)
        at = tuple(guidance_scale > 0 and (last > 1 or time <= last) for time in times)
        combine = partial(limited, float(cfg_normalization or 0.0))
        self.set_up(schedule, Joined(guidance_scale, any(at), combine, at))

    def time(self, t: Tensor, x: Tensor, step: Tensor) -> Tensor:
        return (1000 - t) / 1000

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        (text,) = texts
        out = self.net(
            list(x.to(self.net.dtype).unsqueeze(2).unbind(0)),
            t,
            text,
            joint_attention_kwargs=self._joint_attention_kwargs,
            return_dict=False,
        )[0]
        return -torch.stack([row.float() for row in out]).squeeze(2)


def limited(limit: float, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """conditional + scale * (conditional - unconditional), each row at most `limit` times as long as the conditional
    one; 0 is no limit."""
    guided = conditional + scale * (conditional - unconditional)
    return guided if limit <= 0 else torch.stack([_cut(*rows, limit) for rows in zip(guided, conditional, strict=True)])


def _cut(guided: Tensor, conditional: Tensor, limit: float) -> Tensor:
    most, norm = torch.linalg.vector_norm(conditional) * limit, torch.linalg.vector_norm(guided)
    return torch.where(norm > most, guided * (most / norm), guided)


class SearchZImagePipeline(SearchMixin, ZImagePipeline):
    """ZImagePipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = ZImageDenoiser
