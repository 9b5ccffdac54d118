"""Tiny randomly initialised stock pipelines of every family, made without a download.

Parts are made once per process and copied for every pipeline, so a test may change what it was given.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from ttsnap.pipelines import search_class

Parts = dict[str, Any]

# The noise schedules that the published checkpoints of these families were trained with.
STABLE_DIFFUSION_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PIXART_BETAS: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
DYNAMIC_SHIFT: dict[str, Any] = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def parts_once(make: Callable[[], Parts]) -> Callable[[], Parts]:
    """Run `make` once, from a fixed seed that leaves torch's own generator alone; every call gets a copy."""

    @functools.cache
    def original() -> Parts:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make()

    return functools.wraps(make)(lambda: copy.deepcopy(original()))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def jitter(model: torch.nn.Module) -> torch.nn.Module:
    """Zero-initialised output layers would make the network trivial: move every parameter a little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


# Tokenizers and text encoders


def clip_tokenizer() -> CLIPTokenizer:
    """One token per character."""
    characters = [chr(c) for c in range(33, 127)]
    vocabulary = {"<|startoftext|>": 0, "<|pad|>": 1, "<|endoftext|>": 2}
    for word in [*characters, *(c + "</w>" for c in characters)]:
        vocabulary.setdefault(word, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def character_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """One token per character, for T5 and language models; with `chat`, a template that is the message alone."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    for character in map(chr, range(32, 127)):
        vocabulary.setdefault(character, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), behavior="isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    if chat:
        fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return fast


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        bos_token_id=0, eos_token_id=2, pad_token_id=1, hidden_size=32, intermediate_size=37, num_attention_heads=4,
        num_hidden_layers=3, vocab_size=1000, projection_dim=32,
    )  # fmt: skip


def clip_text_model() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(clip_config()).eval()


def t5() -> T5EncoderModel:
    config = T5Config(vocab_size=1000, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return T5EncoderModel(config).eval()


def gemma(**config: Any) -> Gemma2Model:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 200}
    return Gemma2Model(Gemma2Config(**sizes, **config)).eval()


def qwen3_config() -> Qwen3Config:
    return Qwen3Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=200, max_position_embeddings=512,
    )  # fmt: skip


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1e6,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, hidden_size=16, vocab_size=1000, vision_end_token_id=993,
        vision_start_token_id=992, vision_token_id=994,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def autoencoder(channels: int, **config: Any) -> AutoencoderKL:
    """Halves the size once."""
    return AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=channels, norm_num_groups=4, sample_size=32,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **config,
    ).eval()  # fmt: skip


def shifted_autoencoder(channels: int) -> AutoencoderKL:
    """As autoencoder(), in the form that came with SD3."""
    return autoencoder(
        channels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035
    )


# Families


@parts_once
def sd15_parts() -> Parts:
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, norm_num_groups=4, attention_head_dim=4,
    )  # fmt: skip
    return {
        "unet": jitter(unet),
        "vae": autoencoder(4),
        "text_encoder": CLIPTextModel(clip_config()).eval(),
        "tokenizer": clip_tokenizer(),
    }


def sd15(scheduler: Any = None) -> StableDiffusionPipeline:
    default = PNDMScheduler(**STABLE_DIFFUSION_BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return quiet(StableDiffusionPipeline(**sd15_parts(), **absent, scheduler=scheduler or default))


@parts_once
def sdxl_parts() -> Parts:
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=80,
        cross_attention_dim=64, norm_num_groups=4,
    )  # fmt: skip
    return {
        "unet": jitter(unet),
        "vae": autoencoder(4),
        "text_encoder": CLIPTextModel(clip_config()).eval(),
        "text_encoder_2": clip_text_model(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
    }


def sdxl(scheduler: Any = None) -> StableDiffusionXLPipeline:
    default = EulerDiscreteScheduler(**STABLE_DIFFUSION_BETAS, steps_offset=1, timestep_spacing="leading")
    return quiet(StableDiffusionXLPipeline(**sdxl_parts(), scheduler=scheduler or default, add_watermarker=False))


@parts_once
def sd3_parts() -> Parts:
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=96, pooled_projection_dim=64,
    )  # fmt: skip
    return {
        "transformer": jitter(transformer),
        "vae": shifted_autoencoder(4),
        "text_encoder": clip_text_model(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_text_model(),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": None,
        "tokenizer_3": None,
    }


def sd3(scheduler: Any = None, **options: Any) -> StableDiffusion3Pipeline:
    """`options` change the default scheduler."""
    default = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **options})
    return quiet(StableDiffusion3Pipeline(**sd3_parts(), scheduler=scheduler or default))


def flux_transformer(guidance: bool) -> torch.nn.Module:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=guidance,
    )  # fmt: skip
    return jitter(transformer)


def flux_surroundings() -> Parts:
    return {
        "vae": shifted_autoencoder(1),
        "text_encoder": CLIPTextModel(clip_config()).eval(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": character_tokenizer(),
    }


@parts_once
def flux_dev_parts() -> Parts:
    return {"transformer": flux_transformer(guidance=True), **flux_surroundings()}


@parts_once
def flux_schnell_parts() -> Parts:
    return {"transformer": flux_transformer(guidance=False), **flux_surroundings()}


def flux(scheduler: Any = None, guidance: bool = True) -> FluxPipeline:
    """FLUX.1 dev; without `guidance`, schnell."""
    shift = {"shift": 3.0, **DYNAMIC_SHIFT} if guidance else {"shift": 1.0}
    parts = flux_dev_parts() if guidance else flux_schnell_parts()
    return quiet(FluxPipeline(**parts, scheduler=scheduler or FlowMatchEulerDiscreteScheduler(**shift)))


def flux_schnell(scheduler: Any = None) -> FluxPipeline:
    return flux(scheduler, guidance=False)


@parts_once
def pixart_sigma_parts() -> Parts:
    transformer = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8,
        num_attention_heads=3, cross_attention_dim=24, caption_channels=32, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return {
        "transformer": jitter(transformer),
        "vae": autoencoder(4),
        "text_encoder": t5(),
        "tokenizer": character_tokenizer(),
    }


def pixart_sigma(scheduler: Any = None) -> PixArtSigmaPipeline:
    default = DPMSolverMultistepScheduler(**PIXART_BETAS)
    return quiet(PixArtSigmaPipeline(**pixart_sigma_parts(), scheduler=scheduler or default))


@parts_once
def sana_parts() -> Parts:
    transformer = SanaTransformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=8,
    )  # fmt: skip
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.41407,
    )  # fmt: skip
    return {
        "transformer": jitter(transformer),
        "vae": vae.eval(),
        "text_encoder": gemma(head_dim=16, intermediate_size=64, num_hidden_layers=1, attn_implementation="eager"),
        "tokenizer": character_tokenizer(),
    }


def sana(scheduler: Any = None) -> SanaPipeline:
    default = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return quiet(SanaPipeline(**sana_parts(), scheduler=scheduler or default))


@parts_once
def qwen_image_parts() -> Parts:
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[1.0, 0.8, 1.2, 0.9],
    )  # fmt: skip
    return {
        "transformer": jitter(transformer),
        "vae": vae.eval(),
        "text_encoder": qwen_vl(),
        "tokenizer": character_tokenizer(),
    }


def qwen_image(scheduler: Any = None) -> QwenImagePipeline:
    limits = {"max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    default = FlowMatchEulerDiscreteScheduler(**{**DYNAMIC_SHIFT, **limits})
    pipe = quiet(QwenImagePipeline(**qwen_image_parts(), scheduler=scheduler or default))
    # The real tokenizer makes 34 tokens of the template, which are dropped; this one makes one of every character.
    pipe.prompt_template_encode = "." * pipe.prompt_template_encode_start_idx + "{}"
    return pipe


@parts_once
def z_image_parts() -> Parts:
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    with torch.no_grad():  # left uninitialised by diffusers
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    return {
        "transformer": jitter(transformer),
        "vae": autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": Qwen3Model(qwen3_config()).eval(),
        "tokenizer": character_tokenizer(chat=True),
    }


def z_image(scheduler: Any = None) -> ZImagePipeline:
    default = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return quiet(ZImagePipeline(**z_image_parts(), scheduler=scheduler or default))


@parts_once
def lumina2_parts() -> Parts:
    transformer = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, ffn_dim_multiplier=None, norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=[4, 2, 2],
        cap_feat_dim=8,
    )  # fmt: skip
    return {
        "transformer": jitter(transformer),
        "vae": shifted_autoencoder(4),
        "text_encoder": gemma(head_dim=4, intermediate_size=8, num_hidden_layers=2, sliding_window=2),
        "tokenizer": character_tokenizer(),
    }


def lumina2(scheduler: Any = None) -> Lumina2Pipeline:
    default = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return quiet(Lumina2Pipeline(**lumina2_parts(), scheduler=scheduler or default))


@parts_once
def flux2_klein_parts() -> Parts:
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=256, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        sample_size=32, in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), block_out_channels=(4,), layers_per_block=1, latent_channels=1,
        norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    vae.bn.running_mean.copy_(torch.tensor([0.1, -0.2, 0.0, 0.3]))  # statistics that do nothing would test nothing
    vae.bn.running_var.copy_(torch.tensor([1.0, 0.6, 1.4, 0.8]))
    return {
        "transformer": jitter(transformer),
        "vae": vae.eval(),
        "text_encoder": Qwen3ForCausalLM(qwen3_config()).eval(),
        "tokenizer": character_tokenizer(chat=True),
    }


def flux2_klein(scheduler: Any = None) -> Flux2KleinPipeline:
    default = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **DYNAMIC_SHIFT})
    return quiet(Flux2KleinPipeline(**flux2_klein_parts(), scheduler=scheduler or default))


class Family(NamedTuple):
    """`build(scheduler=None)`, and the arguments of a small call that the stock pipeline takes for one prompt."""

    build: Callable[..., Any]
    call: dict[str, Any]


# No picture is square, so that exchanged sides show.
SIZE = {"height": 16, "width": 24}
FAMILIES: dict[str, Family] = {
    "sd15": Family(sd15, {**SIZE, "guidance_scale": 5.0}),
    "sdxl": Family(sdxl, {**SIZE, "guidance_scale": 5.0}),
    "sd3": Family(sd3, {**SIZE, "guidance_scale": 5.0, "max_sequence_length": 8}),
    "flux": Family(flux, {**SIZE, "guidance_scale": 3.5, "max_sequence_length": 32}),
    "flux_schnell": Family(flux_schnell, {**SIZE, "guidance_scale": 0.0, "max_sequence_length": 32}),
    "pixart_sigma": Family(
        pixart_sigma,
        {
            **SIZE,
            "guidance_scale": 5.0,
            "max_sequence_length": 32,
            "clean_caption": False,
            "use_resolution_binning": False,
        },
    ),
    "sana": Family(
        sana,
        {
            "height": 32,
            "width": 64,
            "guidance_scale": 5.0,
            "max_sequence_length": 16,
            "complex_human_instruction": None,
            "use_resolution_binning": False,
        },
    ),
    "qwen_image": Family(
        qwen_image,
        {**SIZE, "true_cfg_scale": 3.0, "negative_prompt": "bad", "max_sequence_length": 16},
    ),
    "z_image": Family(z_image, {**SIZE, "guidance_scale": 3.0, "max_sequence_length": 32}),
    "lumina2": Family(
        lumina2,
        {"height": 32, "width": 48, "guidance_scale": 3.0, "max_sequence_length": 64, "system_prompt": "draw"},
    ),
    "flux2_klein": Family(
        flux2_klein,
        {
            "height": 8,
            "width": 12,
            "guidance_scale": 4.0,
            "max_sequence_length": 32,
            "text_encoder_out_layers": (1,),
        },
    ),
}


UNGUIDED: dict[str, dict[str, Any]] = {
    **{name: {"guidance_scale": 1.0} for name in FAMILIES},
    "flux": {},
    "flux_schnell": {},
    "qwen_image": {"true_cfg_scale": 1.0},
    "z_image": {"guidance_scale": 0.0},
}
"""What makes the family's small call one without classifier-free guidance."""


def save_lora(pipe: Any, folder: Path, *, text_encoder: bool = False, seed: int = 0, rank: int = 4) -> Path:
    """A random LoRA for the network of a pipeline, which stays as it is, saved as diffusers' pipelines save theirs."""
    import peft

    layers = {}
    for part in ["unet" if hasattr(pipe, "unet") else "transformer", *["text_encoder"] * text_encoder]:
        net = copy.deepcopy(getattr(pipe, part))
        modules = ["q_proj", "v_proj"] if part == "text_encoder" else ["to_q", "to_k", "to_v", "ff.net.2"]
        config = peft.LoraConfig(r=rank, lora_alpha=8, target_modules=modules, init_lora_weights=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, net, "made")
        layers[f"{part}_lora_layers"] = peft.get_peft_model_state_dict(net, adapter_name="made")
    type(pipe).save_lora_weights(folder, **layers)
    return folder


@functools.cache
def shared(name: str) -> Any:
    """One of FAMILIES that no test changes. FLOPs, which take longer than a search, are counted once for all twins."""
    pipe = FAMILIES[name].build()
    # Every pipeline with a denoiser keeps what was counted; twins that are made later keep it in the same place.
    search_class(type(pipe)).denoiser_class(pipe, **FAMILIES[name].call)
    return pipe
