"""FLUX.1 dev and schnell (diffusers' FluxPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import FluxPipeline
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Generator, Tensor
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.packed import PackedDenoiser
from ttsnap.pipelines.latents.rows import take, tokens, unscaled
from ttsnap.pipelines.latents.schedule import falling, make_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin

from ttsnap.core.prompt import Prompt


class FluxDenoiser(PackedDenoiser):
    """One call of a FluxPipeline, open to search. Arguments are those of its `__call__`.

    Latents are packed tokens. Raises ValueError for schedulers that search cannot use and for what the pipeline
    refuses.
    """

    def __init__(
        self,
        pipe: FluxPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.5,
        true_cfg_scale: float = 1.0,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        joint_attention_kwargs: dict[str, object] | None = None,
        max_sequence_length: int = 512,
    ) -> None:
        super().__init__(pipe)
        self.guidance_scale, self.cfg_scale = guidance_scale, true_cfg_scale
        height, width = self.native_size(height, width)
        self._joint_attention_kwargs = joint_attention_kwargs or {}
        options = {"max_sequence_length": max_sequence_length, "lora_scale": self._joint_attention_kwargs.get("scale")}
        embeds = {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}
        negative = {"prompt_embeds": negative_prompt_embeds, "pooled_prompt_embeds": negative_pooled_prompt_embeds}
        texts = {"prompt": negative_prompt, "prompt_2": negative_prompt_2 or None}
        self._given = EncoderInputs({"prompt_2": prompt_2 or None}, embeds, options)
        self._negative_given = EncoderInputs(texts, negative, options)
        self.pipe.check_inputs(
            self._given.checked,
            prompt_2,
            height,
            width,
            negative_prompt=negative_prompt,
            negative_prompt_2=negative_prompt_2,
            **embeds,
            **{f"negative_{name}": value for name, value in negative.items()},
            max_sequence_length=max_sequence_length,
        )
        has_negative = negative_prompt is not None or negative_prompt_embeds is not None
        guided = true_cfg_scale > 1 and has_negative
        shapes = {tuple(e.shape) for e in (prompt_embeds, negative_prompt_embeds) if e is not None}
        if guided and len(shapes) > 1:
            raise ValueError(f"prompt_embeds and negative_prompt_embeds must have the same shape, got {shapes}")
        self.text_length = (max_sequence_length, tokens(prompt_embeds), tokens(negative_prompt_embeds))
        mu = token_shift(self.pipe.scheduler, self.pack(height, width))
        given = falling(num_inference_steps) if sigmas is None else sigmas
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            sigmas=None if self.pipe.scheduler.config.get("use_flow_sigmas") else given,
            mu=mu,
        )
        self._use(schedule, guided=guided)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        super().encode_prompts(prompts)
        self._picture_ids = self.pipe._prepare_latent_image_ids(1, *self._tokens, self.device, self._text.dtype)

    def prepared(self, generators: Sequence[Generator]) -> Any:
        return super().prepared(generators)[0]  # beside it are the ids

    def call(self, x: Tensor, time: Tensor, at: Tensor, *encoded: Tensor) -> Tensor:
        text, pooled, text_ids = encoded
        out: Tensor = self.net(
            hidden_states=x,
            timestep=time,
            guidance=self.embedded_guidance(x),
            pooled_projections=take(pooled, at),
            encoder_hidden_states=take(text, at),
            txt_ids=text_ids,
            img_ids=self._picture_ids,
            joint_attention_kwargs=self._joint_attention_kwargs,
            return_dict=False,
        )[0]
        return out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        size = (self.height, self.width, self.pipe.vae_scale_factor)
        latents = unscaled(vae, self.pipe._unpack_latents(self.settled(x0, vae), *size))
        return self.postprocess(self.decoded(vae, latents.to(get_module_execution_device(vae))))


class SearchFluxPipeline(SearchMixin, FluxPipeline):
    """FluxPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = FluxDenoiser
