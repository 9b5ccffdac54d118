"""FLUX.1 dev and schnell (diffusers' FluxPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import FluxPipeline
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import TwoCalls
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Packed
from ttsnap.pipelines.latents.rows import tokens, unscaled
from ttsnap.pipelines.latents.schedule import falling, make_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin

from ttsnap.core.prompt import Prompt


class FluxDenoiser(PipelineDenoiser):
    """One call of a FluxPipeline, open to search. Arguments are those of its `__call__`.

    Latents are packed tokens. Raises ValueError for schedulers that search cannot use and for what the pipeline
    refuses.
    """

    layout: Packed
    reads_scale = "guidance_embeds"

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
        self.embedded_scale = guidance_scale
        height, width = self.native_size(height, width)
        self.layout = Packed.of(height, width, self.pipe.vae_scale_factor)
        self._joint_attention_kwargs = joint_attention_kwargs or {}
        options = {"max_sequence_length": max_sequence_length, "lora_scale": self._joint_attention_kwargs.get("scale")}
        embeds = {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}
        negative = {"prompt_embeds": negative_prompt_embeds, "pooled_prompt_embeds": negative_pooled_prompt_embeds}
        texts = {"prompt": negative_prompt, "prompt_2": negative_prompt_2 or None}
        self.inputs = EncoderInputs({"prompt_2": prompt_2 or None}, embeds, options)
        self.negative_inputs = EncoderInputs(texts, negative, options)
        self.pipe.check_inputs(
            self.inputs.checked,
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
        mu = token_shift(self.pipe.scheduler, self.layout.tokens)
        given = falling(num_inference_steps) if sigmas is None else sigmas
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            sigmas=None if self.pipe.scheduler.config.get("use_flow_sigmas") else given,
            mu=mu,
        )
        self.set_up(schedule, TwoCalls(true_cfg_scale, guided))

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        super().encode_prompts(prompts)
        text = self.texts.positive[0]
        size = (self.layout.rows, self.layout.columns)
        self._picture_ids = self.pipe._prepare_latent_image_ids(1, *size, self.device, text.dtype)
        self.texts = self.texts.each(lambda side: _by_prompt(*side))

    def time(self, t: Tensor, x: Tensor, step: Tensor) -> Tensor:
        return t.to(x.dtype) / 1000

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, pooled, text_ids = texts
        out: Tensor = self.net(
            hidden_states=x,
            timestep=t,
            guidance=self.embedded(x),
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=text_ids[0],
            img_ids=self._picture_ids,
            joint_attention_kwargs=self._joint_attention_kwargs,
            return_dict=False,
        )[0]
        return out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        size = (self.layout.height, self.layout.width, self.pipe.vae_scale_factor)
        latents = unscaled(vae, self.pipe._unpack_latents(self.settled(x0, vae), *size))
        return self.postprocess(self.decoded(vae, latents.to(get_module_execution_device(vae))))


def _by_prompt(text: Tensor, pooled: Tensor, text_ids: Tensor) -> list[Tensor]:
    """With the ids of tokens, which are the same for all prompts, once for each prompt."""
    return [text, pooled, text_ids.expand(len(text), -1, -1)]


class SearchFluxPipeline(SearchMixin, FluxPipeline):
    """FluxPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = FluxDenoiser
