"""Lumina Image 2.0 (diffusers' Lumina2Pipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

from diffusers import Lumina2Pipeline
from torch import Tensor

from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import TwoCalls, as_long, classifier_free
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, texts
from ttsnap.pipelines.latents.layouts import Plain, unscaled
from ttsnap.pipelines.latents.schedule import flow_schedule, token_shift
from ttsnap.pipelines.mixin import SearchMixin


class Lumina2Denoiser(PipelineDenoiser):
    """One call of a Lumina2Pipeline.

    Steps beyond `cfg_trunc_ratio` take one pass instead of two; prices count two for all.
    """

    blocks = "layers"
    halves = True
    honours = (
        "width height num_inference_steps guidance_scale negative_prompt sigmas prompt_embeds"
        " negative_prompt_embeds prompt_attention_mask negative_prompt_attention_mask"
        " attention_kwargs system_prompt cfg_trunc_ratio cfg_normalization max_sequence_length"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        size = self.native_size(call.height, call.width)
        self.layout = Plain(*size)
        options = {
            "system_prompt": call.system_prompt,
            "max_sequence_length": call.max_sequence_length,
        }
        self.inputs = EncoderInputs.of(vars(call), **options)
        self.check_inputs(call, *size)
        self._attention_kwargs = call.attention_kwargs
        masks = (call.prompt_attention_mask, call.negative_prompt_attention_mask)
        seen = [None if mask is None else int(mask[0].sum()) for mask in masks]
        self.text_length = (*options.values(), *(texts(call.negative_prompt, 1) or ()), *seen)
        # As in the pipeline, which counts channels in place of tokens.
        mu = token_shift(self.pipe.scheduler, self.layout.channels(self.net))
        schedule = flow_schedule(self.pipe.scheduler, call, mu)
        steps = len(schedule.timesteps)
        at = tuple(
            call.guidance_scale > 1 and (k + 1) / steps <= call.cfg_trunc_ratio
            for k in range(steps)
        )
        combine = as_long if call.cfg_normalization else classifier_free
        self.set_up(schedule, TwoCalls(call.guidance_scale, any(at), combine, at))

    @property
    def image_tokens(self) -> slice:
        patch, scale = self.net.config.patch_size, self.pipe.vae_scale_factor
        return slice(
            -(self.layout.height // scale // patch) * (self.layout.width // scale // patch), None
        )

    def meta_twin(self) -> Self:
        # The network reads the lengths of texts from their masks, which therefore keep their
        # values.
        twin = super().meta_twin()
        twin.texts = self.texts.each(lambda side: [side[0].to("meta"), side[1]])
        for block in twin.net.context_refiner:
            block.register_forward_pre_hook(
                lambda _, arguments: tuple(a.to("meta") for a in arguments)
            )
        return twin

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, mask = texts
        out = self.forward(
            hidden_states=x,
            timestep=1 - t / self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            attention_kwargs=self._attention_kwargs,
        )
        return -out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        return self.postprocess(
            vae.decode(unscaled(vae, self.settled(x0, vae)).to(vae.dtype), return_dict=False)[0]
        )


class SearchLumina2Pipeline(SearchMixin, Lumina2Pipeline):
    """Lumina2Pipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = Lumina2Denoiser
