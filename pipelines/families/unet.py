"""What the U-Nets of Stable Diffusion share: settings of the pipeline, a pass of the network, guidance."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.guidance.passes import Paired, classifier_free

READS_SCALE = "time_cond_proj_dim"
"""The setting of U-Nets with the guidance distilled into them (LCM); they are called once."""


def settle(denoiser: PipelineDenoiser, call: SimpleNamespace) -> dict[str, Any]:
    """Give the pipeline the settings of a call that its properties read; those that its text encoders read."""
    denoiser.embedded_scale = denoiser.pipe._guidance_scale = call.guidance_scale
    denoiser.pipe._guidance_rescale = call.guidance_rescale
    denoiser.pipe._clip_skip, denoiser.pipe._cross_attention_kwargs = call.clip_skip, call.cross_attention_kwargs
    scale = (call.cross_attention_kwargs or {}).get("scale")
    return {"num_images_per_prompt": 1, "lora_scale": scale, "clip_skip": call.clip_skip}


def guidance(pipe: Any) -> Paired:
    """As the pipeline, whose settings were made, guides."""
    rescale = pipe.guidance_rescale
    combine = partial(_rescaled, rescale) if rescale > 0 else classifier_free
    return Paired(pipe.guidance_scale, pipe.do_classifier_free_guidance, combine)


def passed(denoiser: PipelineDenoiser, x: Tensor, t: Tensor, text: Tensor, added: Any = None) -> Tensor:
    """One pass of the U-Net. added: further conditions."""
    embedded, size = None, denoiser.net.config.time_cond_proj_dim
    if size is not None and denoiser.embedded_scale is not None:
        scales = torch.tensor(denoiser.embedded_scale - 1).repeat(len(x))
        embedded = denoiser.pipe.get_guidance_scale_embedding(scales, embedding_dim=size).to(x.device, x.dtype)
    out: Tensor = denoiser.net(
        x,
        t,
        encoder_hidden_states=text,
        timestep_cond=embedded,
        cross_attention_kwargs=denoiser.pipe.cross_attention_kwargs,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return out


def _rescaled(rescale: float, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    out = classifier_free(unconditional, conditional, scale)
    rescaled: Tensor = rescale_noise_cfg(out, conditional, guidance_rescale=rescale)
    return rescaled
