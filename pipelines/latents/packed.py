"""Transformers whose latents are packed tokens, guided by two calls (FLUX.1, FLUX.2, Qwen-Image)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs

from ttsnap.core.prompt import Prompt


class PackedDenoiser(PipelineDenoiser):
    """Latents are (N, h * w, D), a token for 2 x 2 latent pixels. A family defines `call`, and `encode_prompts` if it
    has more to encode than `_given` and `_negative_given`."""

    guidance_scale: float | None
    """For networks with the guidance distilled into them, which read it; `cfg_scale` is that of the two calls."""
    _negative_given: EncoderInputs
    _tokens: tuple[int, int]
    """Rows and columns of the picture's tokens."""

    def pack(self, height: int, width: int) -> int:
        """Set the size, rounded down to whole tokens as the pipeline does; returns how many they are."""
        side = 2 * self.pipe.vae_scale_factor  # in pixels
        self._tokens = (height // side, width // side)
        self.height, self.width = self._tokens[0] * side, self._tokens[1] * side
        return self._tokens[0] * self._tokens[1]

    @property
    def channels(self) -> int:
        return int(self.net.config.in_channels) // 4

    def encode_prompts(self, prompts: Sequence[Prompt]) -> None:
        self._positive = self._encoded(self._given, prompts)
        self._text = self._positive[0]
        if self.guided:
            self._negative = self._encoded(self._negative_given, prompts, len(self._text))

    def _encoded(self, given: EncoderInputs, prompts: Sequence[Prompt], n: int | None = None) -> list[Any]:
        """What encode_prompt returns, the embeddings first. One call, since it pads to the longest text."""
        return list(self.pipe.encode_prompt(**given.arguments(prompts, n), device=self.device))

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        time = self.time(t, x, step)
        with self.net.cache_context("cond"):
            conditional = self.call(x, time, at, *self._positive)
        if not self.guided:
            return conditional
        with self.net.cache_context("uncond"):
            unconditional = self.call(x, time, at, *self._negative)
        return self.guided_output(unconditional, conditional)

    def call(self, x: Tensor, time: Tensor, at: Tensor, *encoded: Any) -> Tensor:
        """The network's output at x (N, L, D) and times (N,), for rows `at` of what was encoded."""
        raise NotImplementedError

    def time(self, t: Tensor, x: Tensor, step: Tensor) -> Tensor:
        """Times (N,) in [0, 1], as the network reads them."""
        return t.to(x.dtype) / 1000

    @property
    def scale(self) -> float:
        if self.guidance_scale is None or not self.net.config.guidance_embeds:
            return self.cfg_scale
        return self.guidance_scale

    def embed_scale(self, scale: float) -> bool:
        reads = bool(self.net.config.guidance_embeds)
        self.guidance_scale = scale if reads else self.guidance_scale
        return reads

    def embedded_guidance(self, x: Tensor) -> Tensor | None:
        """(N,) what networks with distilled guidance read of its scale."""
        if self.guidance_scale is None or not self.net.config.guidance_embeds:
            return None
        return torch.full([1], self.guidance_scale, device=x.device, dtype=torch.float32).expand(len(x))
