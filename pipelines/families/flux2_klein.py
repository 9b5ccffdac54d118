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
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import spread, take, tokens
from ttsnap.pipelines.schedule import falling, make_schedule


class Flux2KleinDenoiser(PipelineDenoiser):
    """One call of a Flux2KleinPipeline, open to search. Arguments are those of its `__call__`; no `image`.

    Latents are packed tokens. Raises ValueError for schedulers that search cannot use and for what the pipeline
    refuses.
    """

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
        attention_kwargs: dict[str, Any] | None = None,
        max_sequence_length: int = 512,
        text_encoder_out_layers: tuple[int, ...] = (9, 18, 27),
    ) -> None:
        super().__init__(pipe)
        self.guidance_scale = guidance_scale
        height = height or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        width = width or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self.pipe.check_inputs(
            None if prompt_embeds is not None else "",
            height,
            width,
            prompt_embeds=prompt_embeds,
            guidance_scale=guidance_scale,
        )
        self._embeds, self._negative_embeds = prompt_embeds, negative_prompt_embeds
        self._attention_kwargs = attention_kwargs
        self._max_sequence_length, self._layers = max_sequence_length, text_encoder_out_layers
        self.text_length = (max_sequence_length, tokens(prompt_embeds), tokens(negative_prompt_embeds))
        patch = 2 * self.pipe.vae_scale_factor  # pixels of a token's side; the pipeline rounds down to it
        self._tokens = (height // patch, width // patch)
        self.height, self.width = self._tokens[0] * patch, self._tokens[1] * patch
        given = falling(num_inference_steps) if sigmas is None else sigmas
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            sigmas=None if self.pipe.scheduler.config.get("use_flow_sigmas") else given,
            mu=compute_empirical_mu(self._tokens[0] * self._tokens[1], num_inference_steps),
        )
        self.pipe._guidance_scale = guidance_scale
        self._use(schedule, guided=self.pipe.do_classifier_free_guidance)

    def encode(self, prompts: Sequence[str]) -> None:
        given = self._embeds
        n = len(prompts) if given is None else len(given)
        self._text, self._text_ids = self._encoded(list(prompts) if given is None else None, given)
        if self.guided:
            self._negative, self._negative_ids = self._encoded([""] * n, self._negative_embeds)
        shape = torch.empty(1, 1, *self._tokens)
        self._picture_ids = self.pipe._prepare_latent_ids(shape).to(self.device)

    def _encoded(self, prompts: list[str] | None, embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embeddings and position ids of these texts, or of embeddings that were given."""
        encoded: tuple[Tensor, Tensor] = self.pipe.encode_prompt(
            prompt=prompts,
            prompt_embeds=embeds,
            device=self.device,
            max_sequence_length=self._max_sequence_length,
            text_encoder_out_layers=self._layers,
        )
        return encoded

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.transformer.config.in_channels // 4, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, self._text.dtype, self.device, list(generators)
        )[0]
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        time = self._time(t, x, step)
        conditional = self._pass("cond", x, time, take(self._text, at), take(self._text_ids, at))
        if not self.guided:
            return conditional
        unconditional = self._pass("uncond", x, time, take(self._negative, at), take(self._negative_ids, at))
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _time(self, t: Tensor, x: Tensor, step: Tensor) -> Tensor:
        """Times (N,) in [0, 1], in the precision of the stock call: that of its latents, which steps may have narrowed.

        In a batch with noise all are wide again; the network reads wide times as they are.
        """
        time = t.to(x.dtype) / 1000
        if self._stepped in (None, x.dtype):
            return time
        return torch.where((step > 0).to(t.device), (t.to(self._stepped) / 1000).to(x.dtype), time)

    def _pass(self, context: str, x: Tensor, time: Tensor, text: Tensor, text_ids: Tensor) -> Tensor:
        network = self.pipe.transformer
        with network.cache_context(context):
            out: Tensor = network(
                hidden_states=x.to(network.dtype),
                timestep=time,
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
        return self.postprocess(vae.decode(latents.to(get_module_execution_device(vae)), return_dict=False)[0])

    def _unpacked(self, vae: Any, tokens: Tensor) -> Tensor:
        """(N, C, H, W) of packed tokens, in the scale that this VAE decodes."""
        ids = self._picture_ids.expand(len(tokens), -1, -1)
        latents = self.pipe._unpack_latents_with_ids(tokens, ids, *self._tokens)
        norm = getattr(vae, "bn", None)  # small preview VAEs decode what the denoiser puts out
        if norm is not None:
            mean = norm.running_mean.view(1, -1, 1, 1).to(latents.device, latents.dtype)
            variance = norm.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
            latents = latents * torch.sqrt(variance).to(latents.device, latents.dtype) + mean
        unpatched: Tensor = self.pipe._unpatchify_latents(latents)
        return unpatched

    def _blocks(self) -> Any:
        return getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer).transformer_blocks

    def features(self, states: Any, x: Tensor) -> Tensor:
        return spread(states[1], self._tokens)


class SearchFlux2KleinPipeline(SearchMixin, Flux2KleinPipeline):
    """Flux2KleinPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = Flux2KleinDenoiser
