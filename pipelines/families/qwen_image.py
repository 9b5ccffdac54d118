"""Qwen-Image (diffusers' QwenImagePipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.packed import PackedDenoiser
from ttsnap.pipelines.latents.rows import as_long, take, texts, tokens
from ttsnap.pipelines.latents.schedule import falling, make_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin


class QwenImageDenoiser(PackedDenoiser):
    """One call of a QwenImagePipeline, open to search. Arguments are those of its `__call__`.

    Latents are packed tokens. Raises ValueError for schedulers that search cannot use and for what the pipeline
    refuses.
    """

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
        self.guidance_scale, self.cfg_scale = guidance_scale, true_cfg_scale
        height, width = self.native_size(height, width)
        embeds = {"prompt_embeds": prompt_embeds, "prompt_embeds_mask": prompt_embeds_mask}
        negative = {"prompt_embeds": negative_prompt_embeds, "prompt_embeds_mask": negative_prompt_embeds_mask}
        options = {"max_sequence_length": max_sequence_length}
        self._given = EncoderInputs({}, embeds, options)
        self._negative_given = EncoderInputs({"prompt": negative_prompt}, negative, options)
        self.pipe.check_inputs(
            self._given.checked,
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
        mu = token_shift(self.pipe.scheduler, self.pack(height, width))
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            sigmas=falling(num_inference_steps) if sigmas is None else sigmas,
            mu=mu,
        )
        has_negative = negative_prompt is not None or negative_prompt_embeds is not None
        self._use(schedule, guided=true_cfg_scale > 1 and has_negative)

    def call(self, x: Tensor, time: Tensor, at: Tensor, *encoded: Tensor | None) -> Tensor:
        text, mask = encoded  # the mask is None where no text is padded
        out: Tensor = self.net(
            hidden_states=x,
            timestep=time,
            guidance=self.embedded_guidance(x),
            encoder_hidden_states_mask=take(mask, at),
            encoder_hidden_states=take(text, at),
            img_shapes=[[(1, *self._tokens)]] * len(x),
            attention_kwargs=self._attention_kwargs,
            return_dict=False,
        )[0]
        return out

    def guide(self, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
        return as_long(super().guide(unconditional, conditional, scale), conditional)

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        c = vae.config
        if "latents_mean" not in c:
            raise ValueError(f"{type(vae).__name__} cannot decode Qwen-Image's latents; use an AutoencoderKLQwenImage")
        size = (self.height, self.width, self.pipe.vae_scale_factor)
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
