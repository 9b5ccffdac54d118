"""Sana (diffusers' SanaPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SanaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN, ASPECT_RATIO_1024_BIN
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.rows import both, first, spread, take, texts, tokens, unscaled
from ttsnap.pipelines.schedule import make_schedule

# By the transformer's sample_size.
BINS = {16: ASPECT_RATIO_512_BIN, 32: ASPECT_RATIO_1024_BIN, 64: ASPECT_RATIO_2048_BIN, 128: ASPECT_RATIO_4096_BIN}
INSTRUCTION: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class SanaDenoiser(PipelineDenoiser):
    """One call of a SanaPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

    def __init__(
        self,
        pipe: SanaPipeline,
        *,
        negative_prompt: str | list[str] = "",
        num_inference_steps: int = 20,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 4.5,
        height: int = 1024,
        width: int = 1024,
        eta: float = 0.0,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        clean_caption: bool = False,
        use_resolution_binning: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        max_sequence_length: int = 300,
        complex_human_instruction: list[str] | None = INSTRUCTION,
    ) -> None:
        super().__init__(pipe)
        self.guidance_scale, self._asked = guidance_scale, (height, width)
        self.height, self.width = self._binned(height, width) if use_resolution_binning else (height, width)
        self._embeds = {
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        # The stock default, "", counts as given there, which would refuse all negative embeddings.
        negative = negative_prompt or None
        self.pipe.check_inputs(
            None if prompt_embeds is not None else "",
            self.height,
            self.width,
            negative_prompt=negative,
            **self._embeds,
        )
        self.text_length = (max_sequence_length, tokens(prompt_embeds))
        self._negative_prompt, self._attention_kwargs = negative_prompt or "", attention_kwargs
        self._encoding = {
            "clean_caption": clean_caption,
            "max_sequence_length": max_sequence_length,
            "complex_human_instruction": complex_human_instruction,
            "lora_scale": (attention_kwargs or {}).get("scale"),
        }
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            step_arguments={"eta": eta},
            scaled=False,
        )
        self._use(schedule, guided=guidance_scale > 1)

    def _binned(self, height: int, width: int) -> tuple[int, int]:
        """The size of this shape that the network knows; pictures are resized afterwards."""
        base = self.pipe.transformer.config.sample_size
        if base not in BINS:
            raise ValueError(f"no resolution bins for sample_size {base}; set use_resolution_binning=False")
        height, width = self.pipe.image_processor.classify_height_width_bin(height, width, ratios=BINS[base])
        return height, width

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

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        channels, size = self.pipe.transformer.config.in_channels, (self.height, self.width)
        latents: Tensor = self.pipe.prepare_latents(
            len(generators), channels, *size, torch.float32, self.device, list(generators)
        )
        return latents

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        transformer, channels = self.pipe.transformer, x.shape[1]
        text, mask = take(self._text, at), take(self._mask, at)
        if self.guided:
            text, mask = both(self._negative, self._text, at), both(self._negative_mask, self._mask, at)
            x, t = torch.cat([x, x]), torch.cat([t, t])
        out: Tensor = transformer(
            x.to(transformer.dtype),
            encoder_hidden_states=text.to(transformer.dtype),
            encoder_attention_mask=mask,
            timestep=t * transformer.config.timestep_scale,
            return_dict=False,
            attention_kwargs=self._attention_kwargs,
        )[0].float()
        if self.guided:
            unconditional, conditional = out.chunk(2)
            out = unconditional + self.guidance_scale * (conditional - unconditional)
        # Some checkpoints also predict a variance, which the scheduler does not want.
        return out.chunk(2, dim=1)[0] if transformer.config.out_channels // 2 == channels else out

    def pixels(self, vae: Any, x0: Tensor) -> Tensor:
        decoded = vae.decode(unscaled(vae, x0.to(vae.dtype)), return_dict=False)[0]
        if (self.height, self.width) != self._asked:
            height, width = self._asked
            decoded = self.pipe.image_processor.resize_and_crop_tensor(decoded, width, height)
        return self.postprocess(decoded)

    def _blocks(self) -> Any:
        return getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer).transformer_blocks

    def features(self, states: Any, x: Tensor) -> Tensor:
        patch = self.pipe.transformer.config.patch_size
        # The conditional half.
        return spread(states[-len(x) :], (x.shape[-2] // patch, x.shape[-1] // patch))


class SearchSanaPipeline(SearchMixin, SanaPipeline):
    """SanaPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = SanaDenoiser
