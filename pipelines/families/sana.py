"""Sana (diffusers' SanaPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from diffusers import SanaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN, ASPECT_RATIO_1024_BIN
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from torch import Tensor
from ttsnap.pipelines.latents.binned import BinnedDenoiser
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.rows import tokens
from ttsnap.pipelines.mixin import SearchMixin

from ttsnap.core.prompt import Prompt

# By the transformer's sample_size.
BINS = {16: ASPECT_RATIO_512_BIN, 32: ASPECT_RATIO_1024_BIN, 64: ASPECT_RATIO_2048_BIN, 128: ASPECT_RATIO_4096_BIN}
INSTRUCTION: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class SanaDenoiser(BinnedDenoiser):
    """One call of a SanaPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

    scales = False
    bins = BINS
    encodes_apart = True
    noise_dtype = torch.float32

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
        attention_kwargs: dict[str, object] | None = None,
        max_sequence_length: int = 300,
        complex_human_instruction: list[str] | None = INSTRUCTION,
    ) -> None:
        super().__init__(pipe)
        self.cfg_scale, self._attention_kwargs = guidance_scale, attention_kwargs
        self.choose_size(height, width, binned=use_resolution_binning)
        embeds = {
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        options = {
            "clean_caption": clean_caption,
            "max_sequence_length": max_sequence_length,
            "complex_human_instruction": complex_human_instruction,
            "lora_scale": (attention_kwargs or {}).get("scale"),
        }
        self._given = EncoderInputs({"negative_prompt": negative_prompt or ""}, embeds, options)
        # The stock default, "", counts as given there, which would refuse all negative embeddings.
        negative = negative_prompt or None
        self.pipe.check_inputs(self._given.checked, self.height, self.width, negative_prompt=negative, **embeds)
        self.text_length = (max_sequence_length, tokens(prompt_embeds))
        self.follow(num_inference_steps, timesteps, sigmas, eta, guided=guidance_scale > 1)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        self._text, self._mask, self._negative, self._negative_mask = self.encoded(prompts)

    def call(self, x: Tensor, t: Tensor, at: Tensor) -> Tensor:
        dtype = self.net.dtype
        out = self.net(
            x.to(dtype),
            encoder_hidden_states=self.pairs(self._negative, self._text, at).to(dtype),
            encoder_attention_mask=self.pairs(self._negative_mask, self._mask, at),
            timestep=t * self.net.config.timestep_scale,
            return_dict=False,
            attention_kwargs=self._attention_kwargs,
        )[0]
        return self.mean(out.float(), x)


class SearchSanaPipeline(SearchMixin, SanaPipeline):
    """SanaPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = SanaDenoiser
