"""FLUX.2 klein (diffusers' Flux2KleinPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance import TwoCalls
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs, tokens
from ttsnap.pipelines.latents.layouts import Packed
from ttsnap.pipelines.latents.schedule import flow_schedule
from ttsnap.pipelines.mixin import SearchMixin


class Flux2KleinDenoiser(PipelineDenoiser):
    """One call of a Flux2KleinPipeline without images to edit. Latents are packed tokens."""

    layout: Packed
    _begins: Tensor = torch.zeros(1, dtype=torch.long)
    """The positions at which grids begin: 0, and that of every call that was merged."""
    honours = (
        "height width num_inference_steps sigmas guidance_scale prompt_embeds"
        " negative_prompt_embeds attention_kwargs max_sequence_length text_encoder_out_layers"
    )

    def read_call(self, call: SimpleNamespace) -> None:
        self.pipe._guidance_scale = call.guidance_scale
        size = self.native_size(call.height, call.width)
        self.layout = Packed.of(*size, self.pipe.vae_scale_factor)
        options = {
            "max_sequence_length": call.max_sequence_length,
            "text_encoder_out_layers": call.text_encoder_out_layers,
        }
        # the call has none
        nothing = {"negative_prompt": "" if call.negative_prompt_embeds is None else None}
        self.inputs, self.negative_inputs = EncoderInputs.both({**vars(call), **nothing}, **options)
        self.check_inputs(call, *size)
        self._attention_kwargs = call.attention_kwargs
        given = (tokens(call.prompt_embeds), tokens(call.negative_prompt_embeds))
        self.text_length = (call.max_sequence_length, *given)
        mu = compute_empirical_mu(self.layout.tokens, call.num_inference_steps)
        schedule = flow_schedule(self.pipe.scheduler, call, mu, own_sigmas=True)
        self.set_up(schedule, TwoCalls(call.guidance_scale, self.pipe.do_classifier_free_guidance))

    @property
    def image_tokens(self) -> slice:
        return slice(-self.layout.tokens, None)  # after the text

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        if any(Prompt.of(prompt).negative is not None for prompt in prompts):
            raise ValueError("FLUX.2 klein reads no negative prompt; leave Prompt.negative out")
        super().encode(prompts)
        shape = torch.empty(1, 1, self.layout.rows, self.layout.columns)
        self._picture_ids = self.pipe._prepare_latent_ids(shape).to(self.device)

    def merge_schedule(self, other: Self) -> int:
        start = super().merge_schedule(other)
        self._begins = torch.cat([self._begins, torch.tensor([start])])
        return start

    def guided(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        # Times in the precision of the stock call's latents, which steps may have narrowed. A batch
        # that holds initial noise is wide, and the network reads wide times as they are.
        time = t.to(x.dtype) / 1000
        if self._stepped not in (None, x.dtype):
            begun = torch.isin(step, self._begins, invert=True).to(t.device)
            time = torch.where(begun, (t.to(self._stepped) / 1000).to(x.dtype), time)
        return super().guided(x, time, step, at)

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        text, text_ids = texts
        out = self.forward(
            hidden_states=x.to(self.net.dtype),
            timestep=t,
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=text_ids,
            img_ids=self._picture_ids.expand(len(x), -1, -1),
            joint_attention_kwargs=self._attention_kwargs,
        )
        return out[:, : x.shape[1]]

    def finished(self, latents: Tensor) -> Tensor:
        return self._unpacked(self.pipe.vae, latents)

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        latents = self._unpacked(vae, self.settled(x0, vae))
        return self.postprocess(
            vae.decode(latents.to(get_module_execution_device(vae)), return_dict=False)[0]
        )

    def _unpacked(self, vae: Any, tokens: Tensor) -> Tensor:
        """Latents (N, C, H, W) of packed tokens, in the scale of this VAE."""
        ids = self._picture_ids.expand(len(tokens), -1, -1)
        latents = self.pipe._unpack_latents_with_ids(
            tokens, ids, self.layout.rows, self.layout.columns
        )
        norm = getattr(vae, "bn", None)  # preview VAEs decode the denoiser's own scale
        if norm is not None:
            mean = norm.running_mean.view(1, -1, 1, 1).to(latents.device, latents.dtype)
            variance = norm.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
            latents = latents * torch.sqrt(variance).to(latents.device, latents.dtype) + mean
        unpatched: Tensor = self.pipe._unpatchify_latents(latents)
        return unpatched


class SearchFlux2KleinPipeline(SearchMixin, Flux2KleinPipeline):
    """Flux2KleinPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = Flux2KleinDenoiser
