"""The embedded model as ComfyUI's own objects: MODEL, CLIP and VAE, in float32, each equal to the
diffusers pipeline.

ComfyUI's loaders cannot read it: they expect networks of other sizes. So its diffusers networks
stand inside ComfyUI's classes, which do everything else.
"""

from __future__ import annotations

import functools
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import torch
from diffusers import StableDiffusion3Pipeline

from ttsnap.scenes import weights_path

CPU = torch.device("cpu")
Conditioning = list[list[Any]]


@functools.cache
def pipeline():
    """The stock pipeline of the embedded model, loaded once."""
    return StableDiffusion3Pipeline.from_pretrained(weights_path(), torch_dtype=torch.float32)


class EmbeddedLatents(comfy.latent_formats.LatentFormat):
    """Latents between nodes are the VAE's own; in samplers they have the scale and shift of the
    model's VAE."""

    latent_channels = 8

    def __init__(self):
        vae = pipeline().vae.config
        self.scale_factor, self.shift_factor = vae.scaling_factor, vae.shift_factor
        self.latent_rgb_factors = torch.eye(8, 3).tolist()  # previews are of the first channels

    def process_in(self, latent):
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent):
        return latent / self.scale_factor + self.shift_factor


class FlowNetwork(torch.nn.Module):
    """The transformer as ComfyUI calls it: (B, 8, H, W) at `timesteps` of 0 to 1000 to the
    velocity."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.transformer = pipeline().transformer

    def forward(self, x, timesteps, context, y, **_):
        texts = {"encoder_hidden_states": context, "pooled_projections": y}
        velocity = self.transformer(x, timestep=timesteps, return_dict=False, **texts)[0]
        return velocity


class NoiseNetwork(FlowNetwork):
    """The same model as one that predicts noise, in SDXL's parametrisation: x = latent + s * noise,
    s up to 14.6.

    That is the flow's x at time t = s / (1 + s), times 1 + s.
    """

    def __init__(self, sigmas):
        """`sigmas`, (1000,), are those of the timesteps that the network is called with."""
        super().__init__()
        self.register_buffer("sigmas", sigmas.clone())

    def forward(self, x, timesteps, context, y, **_):
        s = self.sigmas[timesteps.long()].view(-1, 1, 1, 1)
        t = s / (1 + s)
        between = x * (s**2 + 1).sqrt() * (1 - t)  # ComfyUI gives x / sqrt(s^2 + 1)
        return between + (1 - t) * super().forward(between, t.flatten() * 1000, context, y)


def embedded_model(parametrisation="flow"):
    """A MODEL. The flow has shift 1, as the model's own scheduler does."""
    config = comfy.supported_models.SD3({"disable_unet_model_creation": True, "in_channels": 8})
    config.sampling_settings = {"shift": 1.0} if parametrisation == "flow" else {}
    config.latent_format = EmbeddedLatents()
    config.set_inference_dtype(torch.float32, None)
    kind = (
        comfy.model_base.ModelType.FLOW
        if parametrisation == "flow"
        else comfy.model_base.ModelType.EPS
    )
    model = comfy.model_base.SD3(config, kind, device=CPU)
    model.diffusion_model = (
        FlowNetwork() if parametrisation == "flow" else NoiseNetwork(model.model_sampling.sigmas)
    )
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=CPU, offload_device=CPU)


class EmbeddedText:
    """A CLIP, as far as CLIPTextEncode uses one."""

    def tokenize(self, text):
        return text

    @torch.inference_mode()
    def encode_from_tokens_scheduled(self, tokens):
        options = {
            "prompt_2": None,
            "prompt_3": None,
            "do_classifier_free_guidance": False,
            "max_sequence_length": 1,
        }
        embeds, _, pooled, _ = pipeline().encode_prompt(tokens, **options)
        return [[embeds, {"pooled_output": pooled}]]


def conditioning(text):
    """The CONDITIONING of a caption, or of "" for the negative one."""
    return EmbeddedText().encode_from_tokens_scheduled(text)


class Autoencoder(torch.nn.Module):
    """diffusers' VAE with the calls of ComfyUI's."""

    def __init__(self):
        super().__init__()
        self.vae = pipeline().vae

    def decode(self, latents):
        image = self.vae.decode(latents, return_dict=False)[0]
        return image

    def encode(self, images):
        mean = self.vae.encode(images).latent_dist.mode()
        return mean


def embedded_vae():
    """A VAE: 32 x 32 pixels for 8 x 8 latents. ComfyUI's class splits batches, scales pixels and
    manages memory."""
    without_weights = {"pixel_space_vae": torch.tensor(1.0)}
    vae = comfy.sd.VAE(sd=without_weights, device=CPU, dtype=torch.float32)
    vae.first_stage_model = Autoencoder().eval()
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=CPU, offload_device=CPU
    )
    vae.downscale_ratio = vae.upscale_ratio = 4
    vae.latent_channels = 8
    return vae
