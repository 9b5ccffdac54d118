"""Lumina Image 2.0 (diffusers' Lumina2Pipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Lumina2Pipeline
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import first, spread, take, texts, unscaled
from ttsnap.pipelines.schedule import falling, make_schedule, token_shift


class Lumina2Denoiser(PipelineDenoiser):
    """One call of a Lumina2Pipeline, open to search. Arguments are those of its `__call__`.

    Steps beyond `cfg_trunc_ratio` take one pass instead of two; prices count two for all.
    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

    def __init__(
        self,
        pipe: Lumina2Pipeline,
        *,
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 4.0,
        negative_prompt: str | list[str] | None = None,
        sigmas: list[float] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        system_prompt: str | None = None,
        cfg_trunc_ratio: float = 1.0,
        cfg_normalization: bool = True,
        max_sequence_length: int = 256,
    ) -> None:
        super().__init__(pipe)
        self.guidance_scale, self._normalise = guidance_scale, cfg_normalization
        self.height = height or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self.width = width or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        self._embeds = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        self.pipe.check_inputs(
            None if prompt_embeds is not None else "",
            self.height,
            self.width,
            negative_prompt,
            max_sequence_length=max_sequence_length,
            **self._embeds,
        )
        self._negative_prompt, self._attention_kwargs = negative_prompt, attention_kwargs
        self._encoding = {"system_prompt": system_prompt, "max_sequence_length": max_sequence_length}
        seen = [None if m is None else int(m[0].sum()) for m in (prompt_attention_mask, negative_prompt_attention_mask)]
        self.text_length = (max_sequence_length, system_prompt, *(texts(negative_prompt, 1) or ()), *seen)
        # The pipeline takes its channels for its tokens.
        mu = token_shift(self.pipe.scheduler, self.pipe.transformer.config.in_channels)
        given = falling(num_inference_steps) if sigmas is None else sigmas
        schedule = make_schedule(self.pipe.scheduler, num_inference_steps, sigmas=given, mu=mu)
        steps = len(schedule.timesteps)
        self._guided_at = [guidance_scale > 1 and (k + 1) / steps <= cfg_trunc_ratio for k in range(steps)]
        self._use(schedule, guided=any(self._guided_at))

    def encode(self, prompts: Sequence[str]) -> None:
        n = len(prompts)
        self._text, self._mask, self._negative, self._negative_mask = self.pipe.encode_prompt(
            list(prompts) if self._embeds["prompt_embeds"] is None else None,
            self.guided,
            negative_prompt=texts(self._negative_prompt, n),
            device=self.device,
            **{name: first(embeds, n) for name, embeds in self._embeds.items()},
            **self._encoding,
        )

    def _meta_twin(self) -> Any:
        # The network reads the lengths of texts off their masks, which need values until then.
        twin = super()._meta_twin()
        twin._mask, twin._negative_mask = self._mask, self._negative_mask
        for block in twin.pipe.transformer.context_refiner:
            block.register_forward_pre_hook(lambda _, arguments: tuple(a.to("meta") for a in arguments))
        return twin

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.transformer.config.in_channels, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, self._text.dtype, self.device, list(generators)
        )
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        time = 1 - t / self.pipe.scheduler.config.num_train_timesteps
        mask = take(self._mask, at)
        self._words = mask.sum(1).tolist()  # for `features`
        out = self._pass(x, time, take(self._text, at), mask)
        guided = [i for i, k in enumerate(step.tolist()) if self._guided_at[k]]
        if guided:
            own = at[guided]
            negative = self._pass(x[guided], time[guided], take(self._negative, own), take(self._negative_mask, own))
            out = out.index_copy(0, torch.tensor(guided, device=out.device), self._guide(out[guided], negative))
        return -out

    def _pass(self, x: Tensor, time: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.pipe.transformer(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            return_dict=False,
            attention_kwargs=self._attention_kwargs,
        )[0]
        return out

    def _guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        guided = unconditional + self.guidance_scale * (conditional - unconditional)
        if not self._normalise:
            return guided
        norms: list[Tensor] = [torch.norm(out, dim=-1, keepdim=True) for out in (conditional, guided)]
        return guided * (norms[0] / norms[1])

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        return self.postprocess(vae.decode(unscaled(vae, self.settled(x0, vae)).to(vae.dtype), return_dict=False)[0])

    def _blocks(self) -> Any:
        return getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer).layers

    def features(self, states: Any, x: Tensor) -> Tensor:
        patch = self.pipe.transformer.config.patch_size
        size = (x.shape[-2] // patch, x.shape[-1] // patch)
        # The picture follows right after the text, whose length differs; states are those of the first pass.
        picture = torch.stack([row[n : n + size[0] * size[1]] for row, n in zip(states, self._words, strict=True)])
        return spread(picture, size)


class SearchLumina2Pipeline(SearchMixin, Lumina2Pipeline):
    """Lumina2Pipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = Lumina2Denoiser
