"""Tiny parts of diffusers' pipeline classes, made offline of tables: `stock("FluxPipeline")` is one
with a small call.

A part is made of its class's own defaults, with what SMALL says of its parameters, what OF_CLASS
says of its class, and what PIPELINES says of it in one pipeline. Text encoders are 32 wide,
tokenizers have a token for each character.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn

WIDTH = 32
"""Of what text encoders make."""
SIZE = (32, 48)
"""Height and width: no picture is square, so that exchanged sides show."""
AXES = (4, 4, 8)
"""Of rotary embeddings, whose sum is the width of a head."""
SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("num_attention_heads", "n_heads", "num_heads", "n_kv_heads", "num_kv_heads"), 2
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "num_layers", "n_layers", "num_hidden_layers", "depth"), 2
    ),
    **dict.fromkeys(
        ("num_single_layers", "num_refiner_layers", "n_refiner_layers", "num_res_blocks"), 1
    ),
    **dict.fromkeys(
        ("layers_per_block", "num_text_blocks", "num_visual_blocks", "motion_layers_per_block"), 1
    ),
    **dict.fromkeys(
        ("attention_head_dim", "head_dim", "freq_dim", "condition_dim", "time_embedding_dim"), 16
    ),
    **dict.fromkeys(
        ("joint_attention_dim", "pooled_projection_dim", "cross_attention_dim", "caption_channels"),
        WIDTH,
    ),
    **dict.fromkeys(
        ("caption_projection_dim", "text_dim", "text_embed_dim", "text_embed_2_dim", "text_in_dim"),
        WIDTH,
    ),
    **dict.fromkeys(
        ("text_hidden_dim", "cap_feat_dim", "context_in_dim", "llm_features_dim", "text_emb_dim"),
        WIDTH,
    ),
    **dict.fromkeys(
        ("in_text_dim", "in_text_dim2", "text_encoder_dim", "image_embed_dim", "image_proj_dim"),
        WIDTH,
    ),
    **dict.fromkeys(
        ("hidden_size", "dim", "model_dim", "intermediate_size", "ffn_dim", "ff_dim"), WIDTH
    ),
    **dict.fromkeys(
        ("ffn_hidden_size", "time_embed_dim", "time_dim", "adaln_dim", "adaln_lora_dim"), WIDTH
    ),
    **dict.fromkeys(
        (
            "axes_dims_rope",
            "rope_axes_dim",
            "axes_dims",
            "axes_dim_rope",
            "rope_dim_list",
            "rope_dim",
        ),
        AXES,
    ),
    **dict.fromkeys(("axes_lens",), (256, 32, 32)),
    **dict.fromkeys(("rope_max_seq_len", "pos_embed_max_size"), 64),
    "mrope_section": (4, 2, 2),
    "base_dim": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "motion_norm_num_groups": 4,
    "motion_num_attention_heads": 2,
}
"""What a parameter of this name is in every network and decoder that takes it."""
UNET: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "num_attention_heads": None,
    "time_embedding_dim": None,
    "sample_size": 16,
}
CONTROL_NET = {
    "down_block_types": UNET["down_block_types"],
    "attention_head_dim": 4,
    "num_attention_heads": None,
    "conditioning_embedding_out_channels": (16, 32),
}
TWO_DOWN = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "sample_size": 32,
}
FOUR = {"block_out_channels": (8, 8, 8, 8)}
WAN_VAE: dict[str, Any] = {"dim_mult": [1, 1, 1, 1]}
LTX_VAE: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, False, False),
    "decoder_spatio_temporal_scaling": (True, True, False, False),
    "patch_size": 1,
}
DC: dict[str, Any] = {"latent_channels": 4, "attention_head_dim": 2, "scaling_factor": 0.41407}
for side in ("encoder", "decoder"):
    DC |= {
        f"{side}_block_types": ("ResBlock", "EfficientViTBlock"),
        f"{side}_block_out_channels": (8, 8),
    }
    DC |= {f"{side}_qkv_multiscales": ((), (5,)), f"{side}_layers_per_block": (1, 1)}
DC |= {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
WAN = {"num_attention_heads": 2, "attention_head_dim": 12}
SANA = {
    "in_channels": 4,
    "out_channels": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
}
COGVIDEO = {"max_text_seq_length": 16, "sample_width": 6, "sample_height": 4, "sample_frames": 5}
OF_CLASS: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": UNET,
    "ControlNetModel": CONTROL_NET,
    "ControlNetUnionModel": {
        **CONTROL_NET,
        "num_trans_channel": 8,
        "num_trans_head": 2,
        "num_proj_channel": 8,
    },
    "SparseControlNetModel": {
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "conditioning_embedding_out_channels": (16, 32),
        "motion_num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_attention_heads": None,
    },
    "UNet2DModel": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "time_embedding_dim": None,
        "sample_size": 16,
    },
    "UNet3DConditionModel": {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "attention_head_dim": 4,
        "num_attention_heads": None,
        "sample_size": 16,
    },
    "I2VGenXLUNet": {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "attention_head_dim": None,
        "num_attention_heads": 2,
        "sample_size": 16,
    },
    "UNetSpatioTemporalConditionModel": {
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "block_out_channels": (32, 64),
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
        "num_attention_heads": (2, 4),
        "sample_size": 16,
    },
    "DreamLiteUNetModel": {
        "down_block_types": (
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D",
        ),
        "up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
        "attention_head_dim": 2,
        "num_attention_heads": None,
        "time_embedding_dim": None,
    },
    "Kandinsky3UNet": {
        "block_out_channels": (16, 32),
        "groups": 4,
        "attention_head_dim": 8,
        "encoder_hid_dim": WIDTH,
        "time_embedding_dim": WIDTH,
        "layers_per_block": 3,
    },
    "AutoencoderKL": TWO_DOWN,
    "VQModel": {**TWO_DOWN, "latent_channels": 4},
    "AutoencoderKLTemporalDecoder": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "block_out_channels": (32, 32),
    },
    "AutoencoderKLWan": WAN_VAE,
    "AutoencoderKLQwenImage": WAN_VAE,
    "AutoencoderKLQwenImage21": {"dim_mult": [1, 1, 1, 1, 1], "decoder_base_dim": 8},
    "AutoencoderKLAllegro": FOUR,
    "AutoencoderKLCogVideoX": FOUR,
    "AutoencoderKLMagvit": FOUR,
    "AutoencoderKLHunyuanVideo": FOUR,
    "AutoencoderKLFlux2": TWO_DOWN,
    "AutoencoderKLHunyuanVideo15": {"block_out_channels": (64,) * 5, "layers_per_block": 1},
    "AutoencoderKLHunyuanImageRefiner": {"block_out_channels": (64,) * 5},
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "block_out_channels": (32, 32),
        "spatial_compression_ratio": 2,
        "sample_size": 32,
        "scaling_factor": 0.75,
    },
    "AutoencoderKLMochi": {
        "encoder_block_out_channels": (32, 32, 32, 32),
        "decoder_block_out_channels": (32, 32, 32, 32),
        "layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLCosmos": {
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "num_layers": 1,
        "resolution": 64,
    },
    "AutoencoderKLLTXVideo": LTX_VAE,
    "AutoencoderKLLTX2Video": {
        "latent_channels": 4,
        "block_out_channels": (8,),
        "decoder_block_out_channels": (8,),
        "layers_per_block": (1,),
        "decoder_layers_per_block": (1, 1),
        "spatio_temporal_scaling": (True,),
        "decoder_spatio_temporal_scaling": (True,),
        "decoder_inject_noise": (False, False),
        "downsample_type": ("spatiotemporal",),
        "upsample_type": ("spatiotemporal",),
        "upsample_residual": (False,),
        "upsample_factor": (1,),
        "patch_size": 1,
        "spatial_compression_ratio": 2,
        "temporal_compression_ratio": 2,
    },
    "AutoencoderKLLTX2Audio": {
        "base_channels": 4,
        "ch_mult": (1,),
        "resolution": 32,
        "latent_channels": 2,
        "mel_bins": 8,
    },
    "LTX2VideoTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 32,
        "audio_in_channels": 4,
        "num_layers": 1,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "vae_scale_factors": (2, 2, 2),
        "rope_double_precision": False,
    },
    "LTX2TextConnectors": {
        "caption_channels": WIDTH,
        "text_proj_in_factor": 3,
        "connector_rope_base_seq_len": 16,
        "rope_double_precision": False,
        **{
            f"{of}_connector_{name}": value
            for of in ("video", "audio")
            for name, value in {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 1,
                "num_learnable_registers": None,
            }.items()
        },
    },
    "LTX2Vocoder": {
        "in_channels": 16,
        "hidden_channels": 8,
        "upsample_kernel_sizes": [4],
        "upsample_factors": [2],
        "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1]],
        "output_sampling_rate": 16000,
    },
    "HunyuanVideoFramepackTransformer3DModel": {
        "has_image_proj": True,
        "has_clean_x_embedder": True,
        "image_condition_type": "latent_concat",
    },
    "HunyuanVideoTransformer3DModel": {},
    "OmniGenTransformer2DModel": {
        "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        "vocab_size": 1000,
        "pad_token_id": 0,
        "time_step_dim": 32,
    },
    "StableUnCLIPImageNormalizer": {"embedding_dim": WIDTH},
    "BriaFibo2Transformer2DModel": {
        "cap_feat_dim": 3 * WIDTH,
        "injection_layer_ids": (0,),
        "min_num_gist_tokens": 4,
        "max_num_gist_tokens": 8,
        "perceiver_num_layers": 1,
        "gist_step": 4,
        "gist_min_text_len": 8,
        "gist_max_text_len": 64,
    },
    "AutoencoderDC": DC,
    "AutoencoderTiny": {
        **{f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")},
        **{f"num_{side}_blocks": (1, 1) for side in ("encoder", "decoder")},
    },
    "AllegroTransformer3DModel": {
        "attention_head_dim": 24,
        "cross_attention_dim": 48,
        "sample_height": 4,
        "sample_width": 6,
        "sample_frames": 5,
    },
    "AuraFlowTransformer2DModel": {
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "pos_embed_max_size": 1024,
    },
    "ChromaTransformer2DModel": {
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 32,
        "approximator_layers": 1,
    },
    "ChronoEditTransformer3DModel": {
        **WAN,
        "in_channels": 36,
        "image_dim": WIDTH,
        "added_kv_proj_dim": 24,
    },
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": {**WAN, "vace_layers": [0]},
    "AnyFlowTransformer3DModel": WAN,
    "AnyFlowFARTransformer3DModel": WAN,
    "HeliosTransformer3DModel": {"attention_head_dim": 16},
    "SkyReelsV2Transformer3DModel": WAN,
    "WanAnimateTransformer3DModel": {
        **WAN,
        "image_dim": WIDTH,
        "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 16,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    },
    "CogVideoXTransformer3DModel": COGVIDEO,
    "ConsisIDTransformer3DModel": COGVIDEO,
    "CosmosControlNetModel": {
        "n_controlnet_blocks": 2,
        "model_channels": 24,
        "attention_head_dim": 12,
        "max_size": (16, 16, 16),
        "img_context_dim_out": WIDTH,
        "encoder_hidden_states_channels": WIDTH,
        "crossattn_proj_in_channels": WIDTH,
    },
    "CogView4Transformer2DModel": {"rope_axes_dim": (8, 8)},
    "HunyuanImageTransformer2DModel": {
        "in_channels": 16,
        "out_channels": 16,
        "rope_axes_dim": (8, 8),
        "text_embed_2_dim": WIDTH,
    },
    "CosmosTransformer3DModel": {"max_size": (16, 16, 16), "attention_head_dim": 12},
    "EasyAnimateTransformer3DModel": {
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "mmdit_layers": 1,
        "sample_width": 6,
        "sample_height": 4,
    },
    "SD3Transformer2DModel": {
        "joint_attention_dim": 96,
        "pooled_projection_dim": 64,
        "sample_size": 16,
    },
    "SD3ControlNetModel": {
        "joint_attention_dim": 96,
        "pooled_projection_dim": 64,
        "sample_size": 16,
    },
    "SanaTransformer2DModel": SANA,
    "SanaControlNetModel": SANA,
    "SanaVideoTransformer3DModel": {"num_cross_attention_heads": 2, "cross_attention_head_dim": 16},
    "PixArtTransformer2DModel": {"sample_size": 8},
    "LTXVideoTransformer3DModel": {"in_channels": 8, "out_channels": 8},
    "Flux2Transformer2DModel": {"axes_dims_rope": (4, 4, 4, 4)},
    "HunyuanDiT2DModel": {
        "cross_attention_dim_t5": WIDTH,
        "text_len": 77,
        "text_len_t5": 256,
        "in_channels": 4,
        "patch_size": 2,
    },
    "HunyuanDiT2DControlNetModel": {
        "cross_attention_dim_t5": WIDTH,
        "in_channels": 4,
        "patch_size": 2,
        "transformer_num_layers": 2,
    },
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "in_channels": 16,
        "axes_dims_rope": (4, 4, 8),
        "max_resolution": (64, 64),
        "llama_layers": [0, 1],
        "caption_channels": [WIDTH, WIDTH],
        "text_emb_dim": 2 * WIDTH,
    },
    "LatteTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 16,
        "video_length": 5,
        "num_attention_heads": 2,
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
    },
    "DiTTransformer2DModel": {"sample_size": 16, "out_channels": 8},
    "LuminaNextDiT2DModel": {"sample_size": 16},
    "Lumina2Transformer2DModel": {"sample_size": 16, "hidden_size": 32, "multiple_of": 16},
    "Krea2Transformer2DModel": {
        "num_text_layers": 2,
        "timestep_embed_dim": 16,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 32,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
    },
    "Cosmos3OmniTransformer": {"vocab_size": 1000, "latent_channel": 16, "patch_latent_dim": 64},
    "NucleusMoEImageTransformer2DModel": {
        "out_channels": 16,
        "num_experts": 4,
        "moe_intermediate_dim": 16,
    },
    "Kandinsky5Transformer3DModel": {"in_visual_dim": 16, "out_visual_dim": 16},
    "MochiTransformer3DModel": {"pooled_projection_dim": WIDTH, "max_sequence_length": 16},
    "HunyuanVideo15Transformer3DModel": {"target_size": 32},
    "MotionAdapter": {"use_motion_mid_block": False},
    "T2IAdapter": {"channels": [8, 16], "downscale_factor": 2, "num_res_blocks": 1},
    "ControlNetXSAdapter": {
        "down_block_types": UNET["down_block_types"],
        "conditioning_embedding_out_channels": (16, 32),
        "block_out_channels": (4, 8),
        "base_block_out_channels": (8, 16),
        "max_norm_num_groups": 4,
        "sample_size": 16,
    },
    "AnimaTextConditioner": {
        **dict.fromkeys(("source_dim", "target_dim"), WIDTH),
        "target_vocab_size": 1000,
        "min_sequence_length": 16,
    },
    "Flux3Transformer2DModel": {"axes_dims_rope": (4, 4, 4, 4)},
    "MiniMaxH3Transformer3DModel": {"time_embed_hidden_dim": WIDTH, "rope_freq_dim": 2},
    "LTX2VideoDiffusionDecoderModel": {
        "latent_channels": 4,
        "patch_size": 2,
        "decoder_head_dim": 8,
        "decoder_stage_channels": (16,) * 5,
        "decoder_stage_depths": (1,) * 5,
        "decoder_stage_kernels": ((1, 3, 3),) * 4,
        "decoder_upsample_strides": (*((1, 1, 1),) * 3, (2, 1, 1)),
        "decoder_upsample_channel_reductions": (1,) * 4,
        "decoder_stage5_kernel": (1, 3, 3),
        "decoder_t_emb_dim": 16,
        "spatial_compression_ratio": 2,
        "temporal_compression_ratio": 2,
    },
    "AutoencoderKLMiniMaxH3": {
        "block_out_channels": (8,) * 6,
        "decoder_num_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_attention_head_dim": 16,
        "decoder_ffn_mult": 1,
    },
    "AutoencoderKLMiniMaxH3Audio": {
        "latents_mean": [0.1] * 32,
        "latents_std": [0.9] * 32,
        "encoder_dim": 4,
        "latent_dim": 64,
        "num_attention_heads": 2,
        "decoder_dim": 128,
    },
    "PriorTransformer": {"embedding_dim": WIDTH},
    "PRXTransformer2DModel": {"axes_dim": (8, 8)},
}
"""What SMALL does not say, or says otherwise."""
ENCODERS: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "intermediate_size", "d_model", "d_ff", "projection_dim"), WIDTH
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "num_layers",
            "num_heads",
        ),
        2,
    ),
    **dict.fromkeys(("head_dim", "d_kv", "patch_size"), 16),
    "image_size": 32,
    "vocab_size": 1000,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
"""What a parameter of this name is in every configuration of transformers that takes it."""
LANGUAGE = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2),
    "head_dim": 16,
    "vocab_size": 1000,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "rope_scaling": {"mrope_section": [4, 2, 2], "rope_type": "default", "type": "default"},
    "rope_theta": 1e6,
}
SEES = {
    **dict.fromkeys(
        ("hidden_size", "intermediate_size", "out_hidden_size", "projection_dim"), WIDTH
    ),
    **dict.fromkeys(("depth", "num_heads", "num_hidden_layers", "num_attention_heads"), 2),
    "image_size": 32,
    "patch_size": 16,
}
LANGUAGE_ALONE = {name: value for name, value in LANGUAGE.items() if not name.startswith("rope")}
QWEN_MARKS = {
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
    "image_token_id": 7,
    "video_token_id": 8,
}
QWEN_VL: dict[str, Any] = {
    "text_config": LANGUAGE,
    "vision_config": {**SEES, "patch_size": 14},
    **QWEN_MARKS,
}
QWEN3_VL: dict[str, Any] = {
    **QWEN_VL,
    "vision_config": {**SEES, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
}
OF_ENCODER: dict[str, dict[str, Any]] = {
    "CLIPTextModel": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    "CLIPTextModelWithProjection": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    "Qwen2_5_VLForConditionalGeneration": QWEN_VL,
    "Qwen2_5_VLTextModel": LANGUAGE,
    "Qwen2VLForConditionalGeneration": {
        **QWEN_VL,
        "vision_config": {**SEES, "patch_size": 14, "embed_dim": WIDTH},
    },
    "Qwen3VLForConditionalGeneration": QWEN3_VL,
    "Qwen3VLModel": QWEN3_VL,
    "Mistral3Model": {"text_config": LANGUAGE, "vision_config": SEES, "image_token_index": 9},
    "Mistral3ForConditionalGeneration": {
        "text_config": LANGUAGE,
        "vision_config": SEES,
        "image_token_index": 9,
    },
    "LlavaForConditionalGeneration": {
        "text_config": LANGUAGE,
        "vision_config": {
            **SEES,
            "image_size": 336,
            "patch_size": 14,
            "model_type": "clip_vision_model",
        },
        "image_token_index": 9,
        "pad_token_id": 0,
    },
    "DPTForDepthEstimation": {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8] * 4,
        "fusion_hidden_size": 8,
    },
    "Gemma3ForConditionalGeneration": {
        "text_config": LANGUAGE,
        "vision_config": SEES,
        "mm_tokens_per_image": 4,
    },
}


RESIZING = "calculate_dimensions"
"""The function of diffusers' modules by which they choose the size of a picture."""
LEFT_OUT = object()
"""In the place of an argument that a pipeline takes and a call does not give."""
FROM_NOISE = dict.fromkeys(("image", "mask_image", "control_image", "strength", "video"), LEFT_OUT)
"""For modular pipelines, whose blocks do all tasks, without a picture."""


@contextmanager
def small_pictures() -> Iterator[None]:
    """Pictures that classes make a megapixel large by themselves are small here, as long as their
    modules are there."""
    loaded = [module for name, module in sys.modules.items() if name.startswith("diffusers.")]
    with ExitStack() as changed:
        for module in loaded:
            if real := vars(module).get(RESIZING):
                changed.enter_context(
                    patch.object(module, RESIZING, functools.partial(_smaller, real))
                )
        yield


def _smaller(real: Callable[..., Any], area: float, ratio: float) -> Any:
    return real(min(area, 4 * SIZE[0] * SIZE[1]), ratio)


class Case(NamedTuple):
    """A stock pipeline and the arguments of a small call, without a prompt and a generator."""

    pipe: Any
    call: dict[str, Any]


def stock(name: str) -> Case:
    """A pipeline of this class. ValueError, or what diffusers raises, where its parts cannot be
    made."""
    kind = getattr(diffusers, name)
    parts, call, settings = _asked(name)
    if issubclass(kind, diffusers.ModularPipeline):
        pipe = kind()
        specs = pipe._component_specs.items()
        pretrained = {
            part: spec for part, spec in specs if spec.default_creation_method == "from_pretrained"
        }
        made = {
            part: part_of(spec.type_hint, parts.get(part, {})) for part, spec in pretrained.items()
        }
        values = {name: parts[name] for name in pipe._config_specs if name in parts}
        pipe.update_components(**made, **values)
        takes = set(pipe.blocks.input_names)
    else:
        given = dict(inspect.signature(kind.__init__).parameters)
        del given["self"]
        wanted = {
            part: each
            for part, each in given.items()
            if part in parts or each.default is each.empty
        }
        pipe = kind(
            **{part: part_of(each.annotation, parts.get(part, {})) for part, each in wanted.items()}
        )
        takes = set(inspect.signature(kind.__call__).parameters)
    pipe.set_progress_bar_config(disable=True)
    for key, value in settings.items():
        owner, _, attribute = key.rpartition(".")
        setattr(getattr(pipe, owner) if owner else pipe, attribute, value)
    _shorten_templates(pipe)
    return Case(
        pipe, {key: value for key, value in call.items() if key in takes and value is not LEFT_OUT}
    )


def _asked(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What PIPELINES says of a class: its parts, the arguments of its call, its attributes."""
    parts, call, settings = dict[str, Any](), dict(CALL), dict[str, Any]()
    start = name.removesuffix("Pipeline")
    if start.endswith("Modular"):
        start = start.removesuffix("Modular")
        call |= {} if re.search("Edit|Image2Video|Kontext|Layered|Animate", start) else FROM_NOISE
    for pattern, some, arguments, *more in PIPELINES:
        if not re.fullmatch(pattern, start):
            continue
        for part, own in some.items():
            before = parts.get(part)
            both = isinstance(own, dict) and isinstance(before, dict)
            parts[part] = {**before, **own} if both else own
        call |= {key: value for key, value in arguments.items() if call.get(key) is not LEFT_OUT}
        settings |= more[0] if more else {}
    return parts, call, settings


def _shorten_templates(pipe: Any) -> None:
    """Give templates of prompts as many tokens as the real tokenizer makes of them."""
    first = getattr(pipe, "prompt_template_encode_start_idx", None)
    if not isinstance(first, int):
        return
    for name in ("prompt_template", "prompt_template_encode", "prompt_template_encode_prefix"):
        if hasattr(pipe, name):
            seen = IMAGE_MARK if IMAGE_MARK in getattr(pipe, name) else ""
            setattr(pipe, name, "." * first + ("" if name.endswith("prefix") else seen + "{}"))


def part_of(annotation: Any, given: Any) -> Any:
    """A part: `given` is its class's name, what its configuration says otherwise, both, or the part
    itself."""
    if not isinstance(given, dict | str | tuple):
        return given
    name, own = (
        given
        if isinstance(given, tuple)
        else (given, {})
        if isinstance(given, str)
        else ("", given)
    )
    kinds = [found_class(name)] if name else classes_in(annotation)
    for kind in kinds:
        if (made := made_of(kind, own)) is not None:
            return made
    if type(None) in kinds:
        return None
    raise ValueError(f"nothing makes one of {[getattr(kind, '__name__', kind) for kind in kinds]}")


def classes_in(annotation: Any) -> list[Any]:
    """The classes that an annotation names, in order."""
    named = annotation.split(" | ") if isinstance(annotation, str) and " | " in annotation else ()
    inside = [kind for each in named or typing.get_args(annotation) for kind in classes_in(each)]
    return inside or [
        annotation if isinstance(annotation, type) else found_class(str(annotation).split(".")[-1])
    ]


def found_class(name: str) -> Any:
    for module in (diffusers, transformers):
        if hasattr(module, name):
            return getattr(module, name)
    return MAKERS.get(name) and type(name, (), {})


def made_of(kind: Any, own: Mapping[str, Any]) -> Any:
    """A part of this class; None where nothing knows how to make one."""
    name = getattr(kind, "__name__", "")
    if name in MAKERS:
        return MAKERS[name](**own)
    if "Tokenizer" in name or name in ("PythonBackend", "TokenizersBackend"):
        return clip_tokenizer() if name.startswith("CLIP") else character_tokenizer()
    if "Processor" in name:
        return processor(name)
    if not isinstance(kind, type):
        return None
    if issubclass(kind, diffusers.SchedulerMixin):
        return kind(**{**SCHEDULERS.get(name, {}), **own})
    if issubclass(kind, transformers.PreTrainedModel):
        return encoder(kind, **own)
    if issubclass(kind, diffusers.ModelMixin):
        return network(kind, **own)
    return kind(**own) if "Guid" in name else None


def network(kind: Any, **own: Any) -> nn.Module:
    takes = inspect.signature(kind.__init__).parameters
    wanted = {**SMALL, **OF_CLASS.get(kind.__name__, {}), **own}
    config = {name: value for name, value in wanted.items() if name in takes}
    return jitter(kind(**config))


def encoder(kind: Any, **own: Any) -> nn.Module:
    config = kind.config_class
    takes = inspect.signature(config.__init__).parameters
    small = {name: value for name, value in ENCODERS.items() if name in takes}
    made: nn.Module = kind(config(**{**small, **OF_ENCODER.get(kind.__name__, {}), **own}))
    return made.eval()


def processor(name: str) -> Any:
    if name.startswith("Siglip"):
        return transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    if name.startswith("DPT"):
        return transformers.DPTImageProcessor(size={"height": 32, "width": 32})
    if name.startswith("CLIP"):
        return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    patch = 16 if "Qwen3" in name else 14
    pictures = transformers.Qwen2VLImageProcessor(
        patch_size=patch, size={"shortest_edge": 4 * patch**2, "longest_edge": 16 * patch**2}
    )
    videos = transformers.Qwen2VLVideoProcessor()
    return getattr(transformers, name)(pictures, character_tokenizer(), videos, chat_template=CHAT)


def ldm_bert() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    sizes = {
        "vocab_size": 1000,
        "encoder_layers": 2,
        "encoder_ffn_dim": WIDTH,
        "encoder_attention_heads": 2,
    }
    return LDMBertModel(LDMBertConfig(d_model=WIDTH, head_dim=16, **sizes)).eval()


def multilingual_clip() -> Any:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    sizes = {name: ENCODERS[name] for name in ("hidden_size", "intermediate_size", "vocab_size")}
    sizes |= {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "type_vocab_size": 1,
    }
    return MultilingualCLIP(MCLIPConfig(numDims=WIDTH, transformerDimensions=WIDTH, **sizes)).eval()


def t5_gemma() -> Any:
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    config = transformers.T5GemmaConfig(encoder=LANGUAGE, decoder=LANGUAGE)
    return T5GemmaEncoder(config.encoder).eval()


def t5_gemma2() -> Any:
    from transformers.models.t5gemma2 import configuration_t5gemma2, modeling_t5gemma2

    text = configuration_t5gemma2.T5Gemma2TextConfig(**LANGUAGE_ALONE)
    text.dropout_rate = text.attention_dropout = 0.0
    config = configuration_t5gemma2.T5Gemma2EncoderConfig(
        text_config=text, vision_config={**SEES, "model_type": "siglip_vision_model"}
    )
    return modeling_t5gemma2.T5Gemma2Encoder(config, eoi_token_index=9).eval()


class Passing(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A safety checker to which everything is safe."""

    config_name = "config.json"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.zeros(1))

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


class Repeating(transformers.PreTrainedModel):
    """A language model that writes the end of what it has read."""

    config_class = transformers.PretrainedConfig

    def __init__(self) -> None:
        super().__init__(transformers.PretrainedConfig())
        self.nothing = nn.Parameter(torch.zeros(1))

    def generate(self, input_ids: Tensor, **_: Any) -> Tensor:
        return torch.cat([input_ids, input_ids[:, -16:]], dim=1)


def jitter(model: nn.Module) -> nn.Module:
    """Zero-initialised output layers would make the network trivial: move every parameter a
    little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.05)
    return model.eval()


def clip_tokenizer() -> Any:
    """One token per character."""
    characters = [chr(c) for c in range(33, 127)]
    words = [
        "<|startoftext|>",
        "<|pad|>",
        "<|endoftext|>",
        *characters,
        *(c + "</w>" for c in characters),
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


SPECIAL = (
    "<pad>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "<|end_header_id|>",
)
IMAGE_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
CHAT = (
    "{% for m in messages %}<|im_start|>{% if m['content'] is string %}{{ m['content'] }}{% else"
    " %}{% for c in m['content'] %}{% if c['type'] == 'image'"
    " %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in c %}{{ c['text'] }}{% endif"
    " %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
)


def character_tokenizer() -> Any:
    """One token per character, for T5 and language models, with a template of chats."""
    vocabulary = {
        word: number for number, word in enumerate([*SPECIAL, *map(chr, range(32, 127)), "\n"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    words = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        additional_special_tokens=list(SPECIAL[3:]),
        **words,
    )
    fast.chat_template = CHAT
    return fast


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask() -> Image.Image:
    """White, to be painted anew, on the right half."""
    pixels = np.zeros(SIZE, dtype=np.uint8)
    pixels[:, SIZE[1] // 2 :] = 255
    return Image.fromarray(pixels)


STABLE_DIFFUSION_BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
DDIM = {**STABLE_DIFFUSION_BETAS, "clip_sample": False, "steps_offset": 1}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "DDIMScheduler": DDIM,
    "DDPMScheduler": {},
    "CogVideoXDDIMScheduler": {},
    "CogVideoXDPMScheduler": {},
    "UniPCMultistepScheduler": {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    },
    "DPMSolverMultistepScheduler": {},
    "EulerDiscreteScheduler": {},
    "LCMScheduler": STABLE_DIFFUSION_BETAS,
    "UnCLIPScheduler": {},
}
MAKERS: dict[str, Callable[..., Any]] = {
    "Gemma2PreTrainedModel": lambda **own: encoder(transformers.Gemma2Model, **own),
    "GemmaPreTrainedModel": lambda **own: encoder(transformers.GemmaModel, **own),
    "LDMBertModel": ldm_bert,
    "MultilingualCLIP": multilingual_clip,
    "Qwen3_5ForConditionalGeneration": lambda **own: Repeating().eval(),
    "ShapERenderer": lambda **own: None,
    "T5GemmaEncoder": t5_gemma,
    "T5Gemma2Encoder": t5_gemma2,
    "KarrasDiffusionSchedulers": lambda **own: diffusers.DDIMScheduler(**{**DDIM, **own}),
    "SchedulerMixin": lambda **own: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "CosmosSafetyChecker": lambda **own: Passing(),
    "IFWatermarker": lambda **own: None,
    "ByT5Tokenizer": lambda **own: transformers.ByT5Tokenizer(),
}
CALL: dict[str, Any] = {
    "height": SIZE[0],
    "width": SIZE[1],
    "num_inference_steps": 4,
    "num_frames": 5,
    "max_sequence_length": 16,
    "use_resolution_binning": False,
    "clean_caption": False,
    "complex_human_instruction": None,
    "image": picture(),
    "mask_image": mask(),
    "control_image": picture(1),
    "strength": 0.6,
}
SDXL_UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "cross_attention_dim": 64,
    "transformer_layers_per_block": (1, 2),
}
KANDINSKY: dict[str, Any] = {
    "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "block_out_channels": (16, 32),
    "encoder_hid_dim": WIDTH,
    "resnet_time_scale_shift": "scale_shift",
}
IMAGE_EMBEDS = {
    name: torch.linspace(-1, 1, WIDTH)[None] for name in ("image_embeds", "negative_image_embeds")
}
EIGHT = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8,) * 4,
}
SIXTEEN = {"latent_channels": 16, "shift_factor": 0.0609, "scaling_factor": 1.5035}
FRAMES = [picture(i) for i in range(5)]
SIX = {"in_channels": 6, "out_channels": 6}
SEES_LATENTS = {"in_channels": 36}
SEES_PICTURE: dict[str, Any] = {
    "template": "<image><|end_header_id|><|end_header_id|>{}<|end_header_id|>",
    "crop_start": 3,
    "image_emb_len": 576,
    "image_emb_start": 0,
    "image_emb_end": 576,
}
"""The template of a prompt about a picture, which comes first."""
DEEP = {"text_config": {**LANGUAGE, "num_hidden_layers": 36}}
"""Of encoders of which a pipeline takes certain layers."""
PIPELINES: list[Any] = [
    (
        ".*",
        {
            "safety_checker": None,
            "feature_extractor": None,
            "transformer_2": None,
            "watermarker": None,
        },
        {},
    ),
    (".*XL.*", {"unet": SDXL_UNET, "controlnet": SDXL_UNET}, {}),
    (
        "(Flux(?!2|3)|Bria|Chroma|CogView|StableDiffusion3|ZImage|LongCat|Ovis|HiDream|Glm|VisualCloze|PRX|Kandinsky5.2I|Lumina2).*",
        {"vae": SIXTEEN},
        {},
    ),
    ("StableDiffusion3.*", {"text_encoder_3": None, "tokenizer_3": None}, {"control_mask": mask()}),
    (
        "Allegro",
        {},
        {},
        {"vae.kernel": (8, 32, 32), "vae.stride": (4, 16, 16), "vae.use_tiling": True},
    ),
    ("AnimateDiff.*Control.*", {}, {"conditioning_frames": FRAMES}),
    (
        ".*(VideoToVideo|WanAnimate|WanVACE|LucyEdit|EasyAnimateInpaint|EasyAnimateControl).*",
        {},
        {"video": FRAMES},
    ),
    ("AnyFlowFAR", {}, {"chunk_partition": [1, 1]}),
    (
        "BriaFibo2",
        {"vae": {"latent_channels": 32}},
        {"image": LEFT_OUT},
        {"text_encoder_out_layers": ((0, 1, 2), (0, 1, 2))},
    ),
    (
        "BriaFibo(Edit)?",
        {"transformer": {"joint_attention_dim": 2 * WIDTH, "in_channels": 16}},
        {"negative_prompt": "bad"},
    ),
    ("BriaFiboEdit", {}, {"prompt": '{"edit_instruction": "make it blue"}'}),
    ("ChronoEdit", {"image_processor": {}}, {}),
    (
        "(CogVideoXImage.*|CogVideoXFun.*|ConsisID|CogView4Control)",
        {"transformer": {"in_channels": 32}},
        {"control_video": FRAMES},
    ),
    ("Cosmos.*", {"safety_checker": "CosmosSafetyChecker"}, {}),
    ("Cosmos3.*", {}, {}, {"_is_safety_checker_enabled": False}),
    ("Cosmos3Distilled", {"distilled_sigmas": [1.0, 0.9, 0.7, 0.4]}, {}),
    (
        "Cosmos2(TextTo|VideoTo).*",
        {"scheduler": {"use_karras_sigmas": True, "shift": 1.0}},
        {},
    ),
    ("Cosmos.*(Video|2_5).*", {"transformer": {"in_channels": 17}}, {}),
    ("Cosmos2_5_Transfer", {"transformer": {"controlnet_block_every_n": 1}}, {}),
    (
        "Cosmos2_5.*",
        {"transformer": {"text_embed_dim": 2 * WIDTH}, "controlnet": {"text_embed_dim": 2 * WIDTH}},
        {"controls": FRAMES, "num_frames_per_chunk": 5},
    ),
    ("DiT", {}, {"class_labels": [1]}),
    ("EasyAnimate.*", {}, {"negative_prompt": "bad"}),
    (
        "EasyAnimateInpaint",
        {"transformer": {"in_channels": 33}},
        {
            "video": (
                torch.stack([torch.as_tensor(np.array(each)) for each in FRAMES]).movedim(-1, 0)[
                    None
                ]
                / 255
            ),
            "mask_video": torch.ones(1, 1, 5, *SIZE),
        },
    ),
    ("Helios.*", {"scheduler": {"stages": 1}}, {"num_latent_frames_per_chunk": 2}),
    ("HeliosPyramid.*", {"scheduler": {"stages": 3}}, {"height": 64, "width": 128}),
    ("HeliosPyramidDistilled", {"scheduler": ("HeliosDMDScheduler", {"stages": 3})}, {}),
    ("FluxKontext.*", {}, {"max_area": SIZE[0] * SIZE[1], "_auto_resize": False}),
    (
        "FluxControl(|Img2Img|Inpaint)",
        {"transformer": {"in_channels": 128, "out_channels": 64}},
        {},
    ),
    ("FluxFill", {"transformer": {"in_channels": 144, "out_channels": 64}}, {}),
    ("Flux2.*", {}, {"text_encoder_out_layers": (1,), "image": picture().resize((96, 64))}),
    ("Flux2", {"tokenizer": "GemmaTokenizer"}, {}),
    ("Flux2Klein", {}, {"image": LEFT_OUT}),
    ("HunyuanDiT.*", {"vae": EIGHT, "text_encoder_2": {}, "tokenizer_2": {}}, {}),
    (
        "HunyuanImageRefiner",
        {
            "transformer": {
                "in_channels": 128,
                "out_channels": 64,
                "patch_size": (1, 1, 1),
                "rope_axes_dim": AXES,
                "text_embed_2_dim": None,
            }
        },
        {},
    ),
    ("HunyuanVideoFramepack", {"feature_extractor": {}}, {}),
    ("HunyuanVideo15Image.*", {"feature_extractor": {}}, {}),
    ("HunyuanSkyreels.*", {"transformer": {"in_channels": 32}}, {}),
    (
        "HunyuanVideoImageToVideo",
        {
            "image_processor": transformers.CLIPImageProcessor(size=336, crop_size=336),
            "transformer": {"image_condition_type": "token_replace"},
        },
        {"prompt_template": SEES_PICTURE},
    ),
    (
        "Ideogram4",
        {
            "text_encoder": (
                "Qwen3VLModel",
                {"text_config": {**LANGUAGE, "num_hidden_layers": 36}},
            ),
            "transformer": {"llm_features_dim": 13 * WIDTH},
            "unconditional_transformer": {"llm_features_dim": 13 * WIDTH},
        },
        {"guidance_schedule": (7.0,) * 4, "max_sequence_length": 64},
    ),
    (
        "GlmImage",
        {
            "processor": None,
            "vision_language_encoder": None,
            "vae": {"latents_mean": [0.1] * 16, "latents_std": [0.9] * 16},
        },
        {"image": LEFT_OUT, "prior_token_ids": torch.arange(96)[None]},
    ),
    ("HiDreamImage", {}, {}, {"default_sample_size": 8}),
    (
        "IF.*",
        {
            "unet": {"in_channels": 3, "out_channels": 6, "encoder_hid_dim": WIDTH},
            "scheduler": {"variance_type": "learned_range"},
        },
        {"original_image": picture(2)},
    ),
    ("IF.*SuperResolution", {"unet": {**SIX, "encoder_hid_dim": WIDTH}}, {}),
    (
        "Kandinsky(?!V22|3|5|6).*",
        {
            "unet": {
                **KANDINSKY,
                "addition_embed_type": "text_image",
                "encoder_hid_dim_type": "text_image_proj",
            }
        },
        IMAGE_EMBEDS,
    ),
    (
        "KandinskyV22.*",
        {
            "unet": {
                **KANDINSKY,
                "addition_embed_type": "image",
                "encoder_hid_dim_type": "image_proj",
            }
        },
        {**IMAGE_EMBEDS, "hint": torch.ones(1, 3, 4 * SIZE[0], 4 * SIZE[1])},
    ),
    (
        "KandinskyV22Controlnet.*",
        {
            "unet": {
                **KANDINSKY,
                "in_channels": 8,
                "addition_embed_type": "image_hint",
                "encoder_hid_dim_type": "image_proj",
            }
        },
        {},
    ),
    ("Kandinsky(V22)?Inpaint.*", {"unet": {"in_channels": 9}}, {}),
    (
        "Kandinsky(V22Controlnet)?Img2Img.*",
        {},
        {
            "height": 32,
            "width": 32,
            "image": picture().resize((32, 32)),
            "hint": torch.ones(1, 3, 128, 128),
        },
    ),
    ("Kandinsky5I2.", {"transformer": {"visual_cond": True}}, {"num_frames": 17}),
    ("Kandinsky5I2I", {}, {}, {"resolutions": [SIZE[::-1]]}),
    ("Kandinsky6TI2VA", {}, {"sample_audio": False, "image": LEFT_OUT}),
    (
        "(LongCatImageEdit|Kandinsky5I2I|QwenImageEdit.*|QwenImageLayered|JoyImageEdit.*)",
        {"vae": {**EIGHT, "mid_block_add_attention": False, "base_dim": 2}},
        {},
    ),
    ("Krea2.*", {"text_encoder": DEEP, "transformer": {"num_text_layers": 12}}, {}),
    ("Anima", {"transformer": {"in_channels": 16}}, {}),
    (
        "Flux3.*",
        {
            "text_encoder": DEEP,
            "tokenizer": "Qwen3VLProcessor",
            "transformer": {"joint_attention_dim": 8 * WIDTH},
            "prompt_upsampler": "Qwen3_5ForConditionalGeneration",
            "prompt_upsampler_processor": "Qwen3VLProcessor",
        },
        {"max_new_tokens": 4},
    ),
    (
        "MiniMaxH3",
        {"text_encoder": {"text_config": {**LANGUAGE, "num_hidden_layers": 52}}},
        {"width": 64, "num_frames": 124},
    ),
    (
        "LTX2(5)?|Echo",
        {
            "text_encoder": "Gemma3ForConditionalGeneration",
            **dict.fromkeys(("prompt_enhancer", "processor", "duration_head")),
        },
        {},
    ),
    ("LDMTextToImage", {"bert": "LDMBertModel", "unet": "UNet2DConditionModel"}, {}),
    ("Latte", {}, {"video_length": 5}),
    ("LDM", {"vqvae": {"latent_channels": 3}}, {}),
    ("LDMSuperResolution", {"vqvae": {"latent_channels": 3}, "unet": {"in_channels": 6}}, {}),
    ("LatentConsistency.*", {"unet": {"time_cond_proj_dim": 8}}, {}),
    ("LTX2.*", {}, {"image_crf": 0}),
    ("LTX2DFR", {"transformer": {"use_keyframes_abs_pos_embedding": True}}, {}),
    ("LongCatImage", {}, {"enable_prompt_rewrite": False}),
    ("(LTX|Sana).*", {}, {"height": 32, "width": 64}),
    ("Lu(mina|cy).*", {}, {"height": 64, "width": 96}),
    ("Marigold.*", {"unet": {"in_channels": 8}}, {"processing_resolution": 48}),
    ("MotifVideoImage.*", {"feature_extractor": {}, "transformer": {"image_embed_dim": WIDTH}}, {}),
    ("Motif.*", {"guider": "ClassifierFreeGuidance"}, {}),
    ("NucleusMoE.*", {}, {"return_index": -1}),
    ("PRXPixel", {"text_encoder": "Qwen3Model", "transformer": {"in_channels": 3}}, {}),
    ("OmniGen", {"vae": EIGHT, "scheduler": {"invert_sigmas": True, "num_train_timesteps": 1}}, {}),
    ("QwenImage21", {}, {"image": LEFT_OUT}),
    ("QwenImageEdit(Plus)?", {}, dict.fromkeys(("mask_image", "strength"), LEFT_OUT)),
    (
        "QwenImageControlNetInpaint",
        {"controlnet": {"extra_condition_channels": 4}},
        {"control_mask": mask()},
    ),
    (
        "SanaSprint.*",
        {"scheduler": "SCMScheduler", "transformer": {"guidance_embeds": True}},
        {"intermediate_timesteps": None},
    ),
    ("SkyReelsV2Diff.*", {}, {"base_num_frames": 5, "overlap_history": 1}),
    (
        "StableDiffusion3ControlNetInpainting",
        {"controlnet": {"extra_conditioning_channels": 1}},
        {},
    ),
    ("SanaVideo|SanaImageToVideo", {"vae": "AutoencoderKLWan"}, {}),
    (
        "SanaWM",
        {"transformer": {"in_channels": 4, "out_channels": 4, "chunk_plucker_channels": 12}},
        {"action": "w-4", "intrinsics": [50.0, 50.0, 24.0, 16.0]},
    ),
    (
        "SkyReelsV2Image.*",
        {
            "image_processor": "CLIPImageProcessor",
            "transformer": {**SEES_LATENTS, "image_dim": WIDTH, "added_kv_proj_dim": 24},
        },
        {},
    ),
    (
        "StableDiffusion(XL)?Adapter",
        {
            "unet": {
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            }
        },
        {},
    ),
    ("StableDiffusionDepth2Img", {"unet": {"in_channels": 5}, "feature_extractor": {}}, {}),
    ("StableDiffusion(XL)?InstructPix2Pix", {"unet": {"in_channels": 8}}, {}),
    ("StableDiffusionImageVariation", {"feature_extractor": {}}, {}),
    (
        "StableDiffusionLatentUpscale",
        {"unet": {"in_channels": 8, "out_channels": 5, "time_cond_proj_dim": 128 + WIDTH}},
        {},
    ),
    ("StableDiffusionUpscale", {"unet": {"in_channels": 7, "num_class_embeds": 1000}}, {}),
    (
        "StableUnCLIP.*",
        {
            "unet": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 64},
            "feature_extractor": {},
        },
        {},
    ),
    (
        "StableVideoDiffusion",
        {"image_encoder": {"image_size": 224, "patch_size": 56}, "feature_extractor": {}},
        {},
    ),
    (
        "VisualCloze.*",
        {"resolution": 32, "transformer": {"in_channels": 144, "out_channels": 64}},
        {
            "task_prompt": "edit",
            "content_prompt": "a fox",
            "image": [[picture(), picture(1)], [picture(2), None]],
        },
    ),
    ("(Wan|LucyEdit).*", {"transformer": {}}, {}),
    ("Wan22.*", {"transformer_2": {}}, {}),
    ("Wan22Image2Video", {"transformer": SEES_LATENTS, "transformer_2": SEES_LATENTS}, {}),
    ("LucyEdit", {"transformer": {"in_channels": 32}}, {}),
    (
        "WanImage(To|2)Video",
        {
            "image_processor": {},
            "image_encoder": {},
            "transformer": {**SEES_LATENTS, "image_dim": WIDTH, "added_kv_proj_dim": 24},
        },
        {},
    ),
    (
        "Wan22Vace",
        dict.fromkeys(("transformer", "transformer_2"), "WanVACETransformer3DModel"),
        {},
    ),
    (
        "WanAnimate",
        {"image_processor": {}},
        {"pose_video": FRAMES, "face_video": FRAMES, "segment_frame_length": 5},
    ),
    (".*ControlNetUnion.*", {}, {"control_mode": 0}),
    (
        "ZImageControlNet.*",
        {
            "controlnet": {
                "control_layers_places": [0],
                "control_refiner_layers_places": [0],
                "control_in_dim": 16,
            }
        },
        {},
    ),
    ("ZImageControlNetInpaint", {"controlnet": {"control_in_dim": 33}}, {}),
    (
        "ZImageOmni",
        {"transformer": {"siglip_feat_dim": WIDTH}},
        {"image": LEFT_OUT},
    ),
    ("ZImage.*", {"text_encoder": "Qwen3Model"}, {}),
]
"""Pipelines by patterns of their names without `Pipeline`, in order: parts, arguments of a call,
and attributes."""
