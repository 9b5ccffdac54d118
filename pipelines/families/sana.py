"""Sana (diffusers' SanaPipeline): encode, initial latents, predict, decode."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import SanaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN, ASPECT_RATIO_1024_BIN
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import Paired
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs
from ttsnap.pipelines.latents.layouts import Binned, without_variance
from ttsnap.pipelines.latents.rows import tokens
from ttsnap.pipelines.latents.schedule import make_schedule
from ttsnap.pipelines.mixin import SearchMixin

# By the transformer's sample_size.
BINS = {16: ASPECT_RATIO_512_BIN, 32: ASPECT_RATIO_1024_BIN, 64: ASPECT_RATIO_2048_BIN, 128: ASPECT_RATIO_4096_BIN}
INSTRUCTION: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class SanaDenoiser(PipelineDenoiser):
    """One call of a SanaPipeline, open to search. Arguments are those of its `__call__`.

    Raises ValueError for schedulers that search cannot use and for sizes that the pipeline refuses.
    """

    halves = True
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
        self._attention_kwargs = attention_kwargs
        self.layout = Binned.of(height, width, self.pipe, BINS if use_resolution_binning else None)
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
        self.inputs = EncoderInputs({"negative_prompt": negative_prompt or ""}, embeds, options)
        # The stock default, "", counts as given there, which would refuse all negative embeddings.
        negative, size = negative_prompt or None, (self.layout.height, self.layout.width)
        self.pipe.check_inputs(self.inputs.checked, *size, negative_prompt=negative, **embeds)
        self.text_length = (max_sequence_length, tokens(prompt_embeds))
        schedule = make_schedule(
            self.pipe.scheduler,
            num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            step_arguments={"eta": eta},
            scaled=False,
        )
        self.set_up(schedule, Paired(guidance_scale, guidance_scale > 1))

    def call(self, x: Tensor, t: Tensor, *texts: Any) -> Tensor:
        (text, mask), dtype = texts, self.net.dtype
        out = self.net(
            x.to(dtype),
            encoder_hidden_states=text.to(dtype),
            encoder_attention_mask=mask,
            timestep=t * self.net.config.timestep_scale,
            return_dict=False,
            attention_kwargs=self._attention_kwargs,
        )[0]
        return without_variance(out.float(), x, self.net)


class SearchSanaPipeline(SearchMixin, SanaPipeline):
    """SanaPipeline whose call also takes `search=`, `reward=`, `budget=` and friends."""

    denoiser_class = SanaDenoiser
