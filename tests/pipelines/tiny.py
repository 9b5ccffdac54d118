"""Tiny randomly initialised pipelines, made without a download."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer


def clip_tokenizer() -> CLIPTokenizer:
    """One token per character."""
    characters = [chr(c) for c in range(33, 127)]
    vocabulary = {"<|startoftext|>": 0, "<|pad|>": 1, "<|endoftext|>": 2}
    for word in [*characters, *(c + "</w>" for c in characters)]:
        vocabulary.setdefault(word, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip_text_model() -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=1000,
        projection_dim=32,
    )
    return CLIPTextModelWithProjection(config).eval()


def jitter(model: torch.nn.Module) -> torch.nn.Module:
    """Zero-initialised output layers would make the network trivial: move every parameter a little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def sd3(**scheduler: object) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=96,
        pooled_projection_dim=64,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=jitter(transformer),
        vae=vae.eval(),
        text_encoder_3=None,
        tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        text_encoder=clip_text_model(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_model(),
        tokenizer_2=clip_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
