"""Z-Image (diffusers' ZImagePipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor
from ttsnap.pipelines.guidance.partly_guided import PartlyGuidedDenoiser
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.rows import take, texts, tokens
from ttsnap.pipelines.latents.schedule import make_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin

from ttsnap.core.prompt import Prompt


class ZImageDenoiser(PartlyGuidedDenoiser):
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
        self.cfg_scale, self._limit = guidance_scale, float(cfg_normalization or 0.0)
        self.height, self.width = height or 1024, width or 1024
        multiple = self.pipe.vae_scale_factor * 2
        if self.height % multiple or self.width % multiple:
            raise ValueError(f"height and width must be divisible by {multiple}, got {self.height} and {self.width}")
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        options = {"max_sequence_length": max_sequence_length}
        counted = {} if prompt_embeds is None else {"prompt": ""}  # the pipeline counts them beside embeddings, too
        self._given = EncoderInputs({"negative_prompt": negative_prompt, **counted}, embeds, options)
        self._joint_attention_kwargs = joint_attention_kwargs
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
        self.use_at(schedule, [guidance_scale > 0 and (last > 1 or time <= last) for time in times])

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        self._text, self._negative = self.encoded(prompts)

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        # One call: all rows with their prompts, then again those whose step is guided, with the negative ones.
        guided = self.guided_rows(step)
        time, typed = (1000 - t) / 1000, x.to(self.net.dtype)
        text = take(self._text, at) + (take(self._negative, at[guided]) if guided else [])
        out = self.net(
            list(torch.cat([typed, typed[guided]]).unsqueeze(2).unbind(0)),
            torch.cat([time, time[guided]]),
            text,
            joint_attention_kwargs=self._joint_attention_kwargs,
            return_dict=False,
        )[0]
        rows = [row.float() for row in out]
        for i, negative in zip(guided, rows[len(x) :], strict=True):
            rows[i] = self.guide(negative, rows[i], self.cfg_scale)
        return -torch.stack(rows[: len(x)]).squeeze(2)

    def guide(self, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
        guided = conditional + scale * (conditional - unconditional)
        if self._limit <= 0:
            return guided
        most, norm = torch.linalg.vector_norm(conditional) * self._limit, torch.linalg.vector_norm(guided)
        return torch.where(norm > most, guided * (most / norm), guided)


class SearchZImagePipeline(SearchMixin, ZImagePipeline):
    """ZImagePipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = ZImageDenoiser
