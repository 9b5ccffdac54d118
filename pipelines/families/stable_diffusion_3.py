"""Stable Diffusion 3 and 3.5 (diffusers' StableDiffusion3Pipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import Paired
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Plain
from ttsnap.pipelines.latents.rows import check_sides, tokens, unscaled
from ttsnap.pipelines.latents.schedule import make_schedule
from ttsnap.pipelines.mixin import SearchMixin


class StableDiffusion3Denoiser(PipelineDenoiser):
    """One call of a StableDiffusion3Pipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

    encodes_apart = True

    def __init__(
        self,
        pipe: StableDiffusion3Pipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.0,
        prompt_2: str | list[str] | None = None,
        prompt_3: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        negative_prompt_3: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        joint_attention_kwargs: dict[str, object] | None = None,
        clip_skip: int | None = None,
        max_sequence_length: int = 256,
        mu: float | None = None,
    ) -> None:
        super().__init__(pipe)
        height, width = self.native_size(height, width)
        check_sides(self.pipe, self.net, height, width)
        self.layout = Plain(height, width)
        texts = {
            "prompt_2": prompt_2,
            "prompt_3": prompt_3,
            "negative_prompt": negative_prompt,
            "negative_prompt_2": negative_prompt_2,
            "negative_prompt_3": negative_prompt_3,
        }
        embeds = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
        }
        scale = (joint_attention_kwargs or {}).get("scale")
        options = {"clip_skip": clip_skip, "max_sequence_length": max_sequence_length, "lora_scale": scale}
        self.inputs, self._joint_attention_kwargs = EncoderInputs(texts, embeds, options), joint_attention_kwargs
        self.pipe.check_inputs(
            self.inputs.checked,
            None,
            None,
            height,
            width,
            **embeds,
            max_sequence_length=max_sequence_length,
            callback_on_step_end_tensor_inputs=[],
        )
        self.text_length = (max_sequence_length, tokens(prompt_embeds))
        extra: dict[str, Any] = {}
        if self.pipe.scheduler.config.get("use_dynamic_shifting"):
            extra["mu"] = self._shift() if mu is None else mu
        elif mu is not None:
            extra["mu"] = mu
        schedule = make_schedule(self.pipe.scheduler, num_inference_steps, sigmas=sigmas, scaled=False, **extra)
        self.set_up(schedule, Paired(guidance_scale, guidance_scale > 1))

    def _shift(self) -> float:
        c = self.pipe.scheduler.config
        patch, scale = self.pipe.transformer.config.patch_size, self.pipe.vae_scale_factor
        tokens = (self.layout.height // scale // patch) * (self.layout.width // scale // patch)
        limits = (c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096))
        return float(calculate_shift(tokens, *limits, c.get("base_shift", 0.5), c.get("max_shift", 1.16)))

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, pooled = texts
        out: Tensor = self.net(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            joint_attention_kwargs=self._joint_attention_kwargs,
            return_dict=False,
        )[0]
        return out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        return self.postprocess(self.decoded(vae, unscaled(vae, self.settled(x0, vae))))


class SearchStableDiffusion3Pipeline(SearchMixin, StableDiffusion3Pipeline):
    """StableDiffusion3Pipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = StableDiffusion3Denoiser
