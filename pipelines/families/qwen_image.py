"""Qwen-Image (diffusers' QwenImagePipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import TwoCalls, as_long
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Packed
from ttsnap.pipelines.latents.rows import texts, tokens
from ttsnap.pipelines.latents.schedule import falling, make_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin


class QwenImageDenoiser(PipelineDenoiser):
    """One call of a QwenImagePipeline, open to search. Arguments are those of its `__call__`.

    Latents are packed tokens. Raises ValueError for schedulers that search cannot use and for what the pipeline
    refuses.
    """

    layout: Packed
    reads_scale = "guidance_embeds"

    def __init__(
        self,
        pipe: QwenImagePipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        true_cfg_scale: float = 4.0,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_embeds_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds_mask: Tensor | None = None,
        attention_kwargs: dict[str, object] | None = None,
        max_sequence_length: int = 512,
    ) -> None:
        super().__init__(pipe)
        self.embedded_scale = guidance_scale
        height, width = self.native_size(height, width)
        self.layout = Packed.of(height, width, self.pipe.vae_scale_factor)
        embeds = {"prompt_embeds": prompt_embeds, "prompt_embeds_mask": prompt_embeds_mask}
        negative = {"prompt_embeds": negative_prompt_embeds, "prompt_embeds_mask": negative_prompt_embeds_mask}
        options = {"max_sequence_length": max_sequence_length}
        self.inputs = EncoderInputs({}, embeds, options)
        self.negative_inputs = EncoderInputs({"prompt": negative_prompt}, negative, options)
        self.pipe.check_inputs(
            self.inputs.checked,
            height,
            width,
            negative_prompt=negative_prompt,
            **embeds,
            **{f"negative_{name}": value for name, value in negative.items()},
            max_sequence_length=max_sequence_length,
        )
        if self.net.config.guidance_embeds and guidance_scale is None:
            raise ValueError("guidance_scale is required for guidance-distilled model.")
        self._attention_kwargs = attention_kwargs or {}
        given = (tokens(prompt_embeds), tokens(negative_prompt_embeds))
        self.text_length = (max_sequence_length, *(texts(negative_prompt, 1) or ()), *given)
        mu = token_shift(self.pipe.scheduler, self.layout.tokens)
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            sigmas=falling(num_inference_steps) if sigmas is None else sigmas,
            mu=mu,
        )
        has_negative = negative_prompt is not None or negative_prompt_embeds is not None
        self.set_up(schedule, TwoCalls(true_cfg_scale, true_cfg_scale > 1 and has_negative, as_long))

    def time(self, t: Tensor, x: Tensor, step: Tensor) -> Tensor:
        return t.to(x.dtype) / 1000

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, mask = texts  # the mask is None where no text is padded
        out: Tensor = self.net(
            hidden_states=x,
            timestep=t,
            guidance=self.embedded(x),
            encoder_hidden_states_mask=mask,
            encoder_hidden_states=text,
            img_shapes=[[(1, self.layout.rows, self.layout.columns)]] * len(x),
            attention_kwargs=self._attention_kwargs,
            return_dict=False,
        )[0]
        return out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        c = vae.config
        if "latents_mean" not in c:
            raise ValueError(f"{type(vae).__name__} cannot decode Qwen-Image's latents; use an AutoencoderKLQwenImage")
        size = (self.layout.height, self.layout.width, self.pipe.vae_scale_factor)
        latents = self.pipe._unpack_latents(x0, *size).to(vae.dtype)  # (N, C, 1, h, w): a film of one picture
        mean, std = (
            torch.tensor(v).view(1, c.z_dim, 1, 1, 1).to(latents.device, latents.dtype)
            for v in (c.latents_mean, c.latents_std)
        )
        # 1 / (1 / std) rounds as the pipeline does.
        return self.postprocess(self.decoded(vae, latents / (1.0 / std) + mean)[:, :, 0])


class SearchQwenImagePipeline(SearchMixin, QwenImagePipeline):
    """QwenImagePipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = QwenImageDenoiser
