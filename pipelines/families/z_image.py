"""Z-Image (diffusers' ZImagePipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import first, spread, take, texts, tokens, unscaled
from ttsnap.pipelines.schedule import make_schedule, token_shift


class ZImageDenoiser(PipelineDenoiser):
    """One call of a ZImagePipeline, open to search. Arguments are those of its `__call__`.

    Steps beyond `cfg_truncation` take one pass instead of two; prices count two for all.
    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

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
        joint_attention_kwargs: dict[str, Any] | None = None,
        max_sequence_length: int = 512,
    ) -> None:
        super().__init__(pipe)
        self.guidance_scale, self._limit = guidance_scale, float(cfg_normalization or 0.0)
        self.height, self.width = height or 1024, width or 1024
        multiple = self.pipe.vae_scale_factor * 2
        if self.height % multiple or self.width % multiple:
            raise ValueError(f"height and width must be divisible by {multiple}, got {self.height} and {self.width}")
        self._negative_prompt, self._joint_attention_kwargs = negative_prompt, joint_attention_kwargs
        self._embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        self._max_sequence_length = max_sequence_length
        given = (tokens(prompt_embeds), tokens(negative_prompt_embeds))
        self.text_length = (max_sequence_length, *(texts(negative_prompt, 1) or ()), *given)
        if prompt_embeds is not None and negative_prompt_embeds is None and guidance_scale > 0:
            raise ValueError("prompt_embeds need negative_prompt_embeds for classifier-free guidance")
        mu = token_shift(self.pipe.scheduler, (self.height // multiple) * (self.width // multiple))
        if sigmas is None:
            sigmas = get_default_z_image_sigmas(max(1, num_inference_steps))  # make_schedule refuses fewer
        schedule = make_schedule(self.pipe.scheduler, num_inference_steps, sigmas=sigmas, mu=mu)
        # As the pipeline compares them: Python's numbers, of times in float32.
        times = ((1000 - schedule.timesteps.float()) / 1000).tolist()
        last = 1.0 if cfg_truncation is None else float(cfg_truncation)
        self._guided_at = [guidance_scale > 0 and (last > 1 or time <= last) for time in times]
        self._use(schedule, guided=any(self._guided_at))

    def encode(self, prompts: Sequence[str]) -> None:
        n = len(prompts)
        self._text, self._negative = self.pipe.encode_prompt(
            prompt=list(prompts),
            device=self.device,
            do_classifier_free_guidance=self.guided,
            negative_prompt=texts(self._negative_prompt, n),
            max_sequence_length=self._max_sequence_length,
            **{name: first(embeds, n) for name, embeds in self._embeds.items()},
        )

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.transformer.in_channels, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, torch.float32, self.device, list(generators)
        )
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        # One call: all rows with their prompts, then again those whose step is guided, with the negative ones.
        guided = [i for i, k in enumerate(step.tolist()) if self._guided_at[k]]
        time, typed = (1000 - t) / 1000, x.to(self.pipe.transformer.dtype)
        text = take(self._text, at) + (take(self._negative, at[guided]) if guided else [])
        out = self.pipe.transformer(
            list(torch.cat([typed, typed[guided]]).unsqueeze(2).unbind(0)),
            torch.cat([time, time[guided]]),
            text,
            joint_attention_kwargs=self._joint_attention_kwargs,
            return_dict=False,
        )[0]
        rows = [row.float() for row in out]
        for i, negative in zip(guided, rows[len(x) :], strict=True):
            rows[i] = self._guide(rows[i], negative)
        return -torch.stack(rows[: len(x)]).squeeze(2)

    def _guide(self, positive: Tensor, negative: Tensor) -> Tensor:
        guided = positive + self.guidance_scale * (positive - negative)
        if self._limit <= 0:
            return guided
        most, norm = torch.linalg.vector_norm(positive) * self._limit, torch.linalg.vector_norm(guided)
        return torch.where(norm > most, guided * (most / norm), guided)

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        return self.postprocess(vae.decode(unscaled(vae, x0.to(vae.dtype)), return_dict=False)[0])

    def _blocks(self) -> Any:
        return getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer).layers

    def features(self, states: Any, x: Tensor) -> Tensor:
        size = (x.shape[-2] // 2, x.shape[-1] // 2)
        # The picture is first in a row; then come its padding and the text.
        return spread(states[: len(x), : size[0] * size[1]], size)


class SearchZImagePipeline(SearchMixin, ZImagePipeline):
    """ZImagePipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = ZImageDenoiser
