"""What the U-Nets of Stable Diffusion share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor
from ttsnap.pipelines.guidance.paired import PairedDenoiser
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs


class UNetDenoiser(PairedDenoiser):
    """A guided U-Net. A family defines `encode_prompts`, which sets `_text` and `_negative`."""

    network = "unet"
    blocks = None
    _text: Tensor
    _negative: Tensor

    def settle(
        self,
        guidance_scale: float,
        guidance_rescale: float,
        clip_skip: int | None,
        cross_attention_kwargs: dict[str, object] | None,
    ) -> None:
        """Give the pipeline these settings, which its properties read."""
        self.cfg_scale = self.pipe._guidance_scale = guidance_scale
        self.pipe._guidance_rescale = guidance_rescale
        self.pipe._clip_skip, self.pipe._cross_attention_kwargs = clip_skip, cross_attention_kwargs

    def given(self, texts: Mapping[str, Any], embeds: Mapping[str, Any]) -> EncoderInputs:
        """What the text encoders read, with the settings that `settle` has made."""
        scale = (self.pipe.cross_attention_kwargs or {}).get("scale")
        return EncoderInputs(
            texts, embeds, {"num_images_per_prompt": 1, "lora_scale": scale, "clip_skip": self.pipe.clip_skip}
        )

    def call(self, x: Tensor, t: Tensor, at: Tensor) -> Tensor:
        out: Tensor = self.net(
            x,
            t,
            encoder_hidden_states=self.pairs(self._negative, self._text, at),
            timestep_cond=self._embedded_guidance(x),
            cross_attention_kwargs=self.pipe.cross_attention_kwargs,
            added_cond_kwargs=self.added(at),
            return_dict=False,
        )[0]
        return out

    def guide(self, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
        out, rescale = super().guide(unconditional, conditional, scale), self.pipe.guidance_rescale
        return rescale_noise_cfg(out, conditional, guidance_rescale=rescale) if rescale > 0 else out

    def embed_scale(self, scale: float) -> bool:
        reads = self.net.config.time_cond_proj_dim is not None
        self.cfg_scale = scale if reads else self.cfg_scale
        return reads

    def _embedded_guidance(self, x: Tensor) -> Tensor | None:
        """What U-Nets with the guidance distilled into them (LCM) read of its scale; they are called once."""
        size = self.net.config.time_cond_proj_dim
        if size is None:
            return None
        scales = torch.tensor(self.cfg_scale - 1).repeat(len(x))
        embedded: Tensor = self.pipe.get_guidance_scale_embedding(scales, embedding_dim=size)
        return embedded.to(x.device, x.dtype)

    def added(self, at: Tensor) -> dict[str, Tensor] | None:
        """Further conditions of rows `at` of the prompts."""
        return None
