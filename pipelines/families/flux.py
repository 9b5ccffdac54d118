"""FLUX.1 dev and schnell (diffusers' FluxPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from diffusers import FluxPipeline
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import TwoCalls
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, tokens
from ttsnap.pipelines.latents.layouts import Packed, unscaled
from ttsnap.pipelines.latents.schedule import flow_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin


class FluxDenoiser(PipelineDenoiser):
    """One call of a FluxPipeline. Latents are packed tokens."""

    layout: Packed
    shared_texts = 1
    reads_scale = "guidance_embeds"
    honours = (
        "height width num_inference_steps sigmas guidance_scale true_cfg_scale prompt_2"
        " negative_prompt negative_prompt_2 prompt_embeds pooled_prompt_embeds"
        " negative_prompt_embeds negative_pooled_prompt_embeds joint_attention_kwargs"
        " max_sequence_length"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        self.embedded_scale = call.guidance_scale
        size = self.native_size(call.height, call.width)
        self.layout = Packed.of(*size, self.pipe.vae_scale_factor)
        self._joint_attention_kwargs = call.joint_attention_kwargs or {}
        options = {
            "max_sequence_length": call.max_sequence_length,
            "lora_scale": self._joint_attention_kwargs.get("scale"),
        }
        self.inputs, self.negative_inputs = EncoderInputs.both(vars(call), **options)
        self.check_inputs(call, *size)
        has_negative = call.negative_prompt is not None or call.negative_prompt_embeds is not None
        guided = call.true_cfg_scale > 1 and has_negative
        shapes = {
            tuple(e.shape)
            for e in (call.prompt_embeds, call.negative_prompt_embeds)
            if e is not None
        }
        if guided and len(shapes) > 1:
            raise ValueError(
                f"prompt_embeds and negative_prompt_embeds must have the same shape, got {shapes}"
            )
        given = (tokens(call.prompt_embeds), tokens(call.negative_prompt_embeds))
        self.text_length = (call.max_sequence_length, *given)
        mu = token_shift(self.pipe.scheduler, self.layout.tokens)
        schedule = flow_schedule(self.pipe.scheduler, call, mu, own_sigmas=True)
        self.set_up(schedule, TwoCalls(call.true_cfg_scale, guided))

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        super().encode(prompts)
        text = self.texts.positive[0]
        size = (self.layout.rows, self.layout.columns)
        self._picture_ids = self.pipe._prepare_latent_image_ids(1, *size, self.device, text.dtype)
        self.texts = self.texts.each(lambda side: _by_prompt(*side))

    @property
    def image_tokens(self) -> slice:
        return slice(-self.layout.tokens, None)  # after the text

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, pooled, text_ids = texts
        return self.forward(
            hidden_states=x,
            timestep=t.to(x.dtype) / 1000,
            guidance=self.embedded(x),
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=text_ids[0],
            img_ids=self._picture_ids,
            joint_attention_kwargs=self._joint_attention_kwargs,
        )

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        size = (self.layout.height, self.layout.width, self.pipe.vae_scale_factor)
        latents = unscaled(vae, self.pipe._unpack_latents(self.settled(x0, vae), *size))
        return self.postprocess(
            vae.decode(latents.to(get_module_execution_device(vae)), return_dict=False)[0]
        )


def _by_prompt(text: Tensor, pooled: Tensor, text_ids: Tensor) -> list[Tensor]:
    """The fields, with the ids of tokens repeated for each prompt."""
    return [text, pooled, text_ids.expand(len(text), -1, -1)]


class SearchFluxPipeline(SearchMixin, FluxPipeline):
    """FluxPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = FluxDenoiser
