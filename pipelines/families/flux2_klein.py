"""FLUX.2 klein (diffusers' Flux2KleinPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import TwoCalls
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Packed
from ttsnap.pipelines.latents.rows import tokens
from ttsnap.pipelines.latents.schedule import falling, make_schedule
from ttsnap.pipelines.mixin import SearchMixin

from ttsnap.core.prompt import Prompt


class Flux2KleinDenoiser(PipelineDenoiser):
    """One call of a Flux2KleinPipeline, open to search. Arguments are those of its `__call__`; no `image`.

    Latents are packed tokens. Raises ValueError for schedulers that search cannot use and for what the pipeline
    refuses.
    """

    layout: Packed

    def __init__(
        self,
        pipe: Flux2KleinPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        guidance_scale: float = 4.0,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        attention_kwargs: dict[str, object] | None = None,
        max_sequence_length: int = 512,
        text_encoder_out_layers: tuple[int, ...] = (9, 18, 27),
    ) -> None:
        super().__init__(pipe)
        self.pipe._guidance_scale = guidance_scale
        height, width = self.native_size(height, width)
        self.layout = Packed.of(height, width, self.pipe.vae_scale_factor)
        options = {"max_sequence_length": max_sequence_length, "text_encoder_out_layers": text_encoder_out_layers}
        self.inputs = EncoderInputs({}, {"prompt_embeds": prompt_embeds}, options)
        nothing = {"prompt": "" if negative_prompt_embeds is None else None}  # it takes no negative prompt
        self.negative_inputs = EncoderInputs(nothing, {"prompt_embeds": negative_prompt_embeds}, options)
        self.pipe.check_inputs(
            self.inputs.checked, height, width, prompt_embeds=prompt_embeds, guidance_scale=guidance_scale
        )
        self._attention_kwargs = attention_kwargs
        self.text_length = (max_sequence_length, tokens(prompt_embeds), tokens(negative_prompt_embeds))
        mu = compute_empirical_mu(self.layout.tokens, num_inference_steps)
        given = falling(num_inference_steps) if sigmas is None else sigmas
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            sigmas=None if self.pipe.scheduler.config.get("use_flow_sigmas") else given,
            mu=mu,
        )
        self.set_up(schedule, TwoCalls(guidance_scale, self.pipe.do_classifier_free_guidance))

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        super().encode_prompts(prompts)
        shape = torch.empty(1, 1, self.layout.rows, self.layout.columns)
        self._picture_ids = self.pipe._prepare_latent_ids(shape).to(self.device)

    def time(self, t: Tensor, x: Tensor, step: Tensor) -> Tensor:
        """In the precision of the stock call: that of its latents, which steps may have narrowed.

        In a batch with noise all are wide again; the network reads wide times as they are.
        """
        time = t.to(x.dtype) / 1000
        if self._stepped in (None, x.dtype):
            return time
        begun = torch.isin(step, self._begins, invert=True).to(t.device)
        return torch.where(begun, (t.to(self._stepped) / 1000).to(x.dtype), time)

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, text_ids = texts
        out: Tensor = self.net(
            hidden_states=x.to(self.net.dtype),
            timestep=t,
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=text_ids,
            img_ids=self._picture_ids.expand(len(x), -1, -1),
            joint_attention_kwargs=self._attention_kwargs,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]

    def finished(self, latents: Tensor) -> Tensor:
        return self._unpacked(self.pipe.vae, latents)

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        latents = self._unpacked(vae, self.settled(x0, vae))
        return self.postprocess(self.decoded(vae, latents.to(get_module_execution_device(vae))))

    def _unpacked(self, vae: Any, tokens: Tensor) -> Tensor:
        """(N, C, H, W) of packed tokens, in the scale that this VAE decodes."""
        ids = self._picture_ids.expand(len(tokens), -1, -1)
        latents = self.pipe._unpack_latents_with_ids(tokens, ids, self.layout.rows, self.layout.columns)
        norm = getattr(vae, "bn", None)  # small preview VAEs decode what the denoiser puts out
        if norm is not None:
            mean = norm.running_mean.view(1, -1, 1, 1).to(latents.device, latents.dtype)
            variance = norm.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
            latents = latents * torch.sqrt(variance).to(latents.device, latents.dtype) + mean
        unpatched: Tensor = self.pipe._unpatchify_latents(latents)
        return unpatched


class SearchFlux2KleinPipeline(SearchMixin, Flux2KleinPipeline):
    """Flux2KleinPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = Flux2KleinDenoiser
