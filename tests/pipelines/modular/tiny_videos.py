"""Tiny parts of modular video pipelines: Wan 2.1 and 2.2, LTX-Video, and LTX-2 with its sound."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Guidance
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.video_processor import VideoProcessor

from tests.pipelines import tiny


def components_once(make):
    """As tiny.parts_once, where they lie on classic pipelines."""
    once = tiny.parts_once(make)
    return functools.wraps(make)(lambda: SimpleNamespace(components=once()))


def wan_vae():
    """Two pixels, and two frames after the first, to a latent."""
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.0, 0.3],
        latents_std=[1.5, 2.0, 1.0, 0.5],
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )
    return vae.eval()


def wan_transformer(**config):
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "ffn_dim": 16,
    }
    of_text = {"text_dim": 32, "freq_dim": 16, "rope_max_seq_len": 32}
    return tiny.jitter(
        diffusers.WanTransformer3DModel(
            out_channels=4, **{"in_channels": 4, **sizes, **of_text, **config}
        )
    )


def wan_parts():
    return {
        "tokenizer": tiny.character_tokenizer(),
        "text_encoder": tiny.t5("UMT5", layers=1),
        "vae": wan_vae(),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
            num_train_timesteps=1000,
        ),
    }


EXPERTS = {"transformer": 1, "transformer_2": 2}
"""Blocks of each, so that one does not pass for the other."""
SEES_IMAGES = {"in_channels": 4 + 2 + 4}
"""Latents, the mask of frames that are given, and the latents of these."""


@components_once
def wan():
    return {**wan_parts(), "transformer": wan_transformer()}


@components_once
def wan_image():
    """Wan 2.1 from a first frame."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return {
        **wan_parts(),
        "image_processor": transformers.CLIPImageProcessor(
            size={"shortest_edge": 16},
            crop_size={"height": 16, "width": 16},
            do_resize=True,
            do_center_crop=True,
        ),
        "image_encoder": transformers.CLIPVisionModel(vision).eval(),
        "transformer": wan_transformer(**SEES_IMAGES, image_dim=8, added_kv_proj_dim=24),
    }


@components_once
def wan_last():
    """Wan 2.1 from a first and a last frame."""
    # The embedding of positions is for the tokens of two images.
    transformer = wan_transformer(
        **SEES_IMAGES, image_dim=8, added_kv_proj_dim=24, pos_embed_seq_len=2 * 5
    )
    return {**wan_image().components, "transformer": transformer}


@components_once
def wan22():
    """Two experts, which differ in depth."""
    return {**wan_parts(), **{name: wan_transformer(num_layers=n) for name, n in EXPERTS.items()}}


@components_once
def wan22_image():
    experts = {name: wan_transformer(**SEES_IMAGES, num_layers=n) for name, n in EXPERTS.items()}
    return {**wan_parts(), **experts}


@components_once
def ltx():
    """Four pixels, and four frames after the first, to a latent."""
    layers, scaling = (1, 1, 1, 1, 1), (True, True, False, False)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=layers,
        decoder_layers_per_block=layers,
        spatio_temporal_scaling=scaling,
        decoder_spatio_temporal_scaling=scaling,
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=32,
    )
    return {
        "tokenizer": tiny.character_tokenizer(),
        "text_encoder": tiny.t5(),
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(**tiny.DYNAMIC_SHIFT),
        "transformer": tiny.jitter(transformer),
        "video_processor": VideoProcessor(vae_scale_factor=4),
    }


def gemma():
    shared = {
        **dict.fromkeys(("hidden_size", "intermediate_size"), 8),
        "num_hidden_layers": 1,
    }
    shared["num_attention_heads"] = 2
    text = {
        **shared,
        "vocab_size": 100,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 64,
    }
    vision = {**shared, "image_size": 8, "patch_size": 4}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval()


@components_once
def ltx2():
    """Two pixels, and two frames after the first, to a latent; four tokens of sound in all."""
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        spatial_compression_ratio=2,
        temporal_compression_ratio=2,
    )
    vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.0, 0.3]))
    vae.latents_std.copy_(torch.tensor([1.5, 2.0, 1.0, 0.5]))
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        vae_scale_factors=(2, 2, 2),
        num_layers=1,
        caption_channels=8,
        rope_double_precision=False,
    )
    heads = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "num_learnable_registers": None,
    }
    connectors = LTX2TextConnectors(
        caption_channels=8,
        text_proj_in_factor=2,
        connector_rope_base_seq_len=16,
        rope_double_precision=False,
        **{
            f"{of}_connector_{name}": value
            for of in ("video", "audio")
            for name, value in heads.items()
        },
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
        output_sampling_rate=16000,
    )
    guidance = {"stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7}
    return {
        "tokenizer": tiny.character_tokenizer(),
        "text_encoder": gemma(),
        "connectors": connectors.eval(),
        "vae": vae.eval(),
        "audio_vae": audio_vae.eval(),
        "vocoder": vocoder.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(**tiny.DYNAMIC_SHIFT),
        "transformer": tiny.jitter(transformer),
        "video_processor": VideoProcessor(vae_scale_factor=2),
        "guider": LTX2Guidance(guidance_scale=3.0, spatio_temporal_guidance_blocks=[0], **guidance),
        "audio_guider": LTX2Guidance(guidance_scale=7.0, **guidance),
    }
