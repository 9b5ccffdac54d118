"""Tiny randomly initialised stock pipelines of every family, made without a download.

Parts are made once per process and copied for every pipeline, so a test may change what it was
given.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tests.pickled import copier
from ttsnap.pipelines.memory.memo import Memo

Parts = dict[str, Any]

TOLERANCE = 1e-5
"""What users are promised: how far an image may be from what the stock call makes of its prompt and
seed alone, in float32, as a share of the largest value."""

# The noise schedules that the published checkpoints of these families were trained with.
STABLE_DIFFUSION_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
PIXART_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
DYNAMIC_SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
# No picture is square, so that exchanged sides show.
SIZE = {"height": 16, "width": 24}
SHORT, SANA = {"max_sequence_length": 32}, {"height": 32, "width": 64, "max_sequence_length": 16}


def parts_once(make):
    """Run `make` once, from a fixed seed that leaves torch's own generator alone; every call gets a
    copy."""

    @functools.cache
    def original():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return copier(make())

    return functools.wraps(make)(lambda: original()())


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Family(NamedTuple):
    """A stock pipeline: its class, what makes its parts and its own scheduler, and a small call for
    one prompt."""

    pipeline: Any
    parts: Callable[[], Parts]
    scheduler: Callable[[], Any]
    call: dict[str, Any]
    unguided: dict[str, Any]
    """The scale at which the call is one without classifier-free guidance."""

    def build(self, scheduler=None):
        pipe = quiet(self.pipeline(**self.parts(), scheduler=scheduler or self.scheduler()))
        if hasattr(pipe, "prompt_template_encode"):  # of which the real tokenizer makes 34 tokens
            pipe.prompt_template_encode = "." * pipe.prompt_template_encode_start_idx + "{}"
        return pipe


FAMILIES = {}


def family(pipeline, scheduler, call, unguided=1.0):
    """Enters a function that makes parts into FAMILIES, by its name, which from then on builds
    pipelines."""
    scale = "true_cfg_scale" if "true_cfg_scale" in call else "guidance_scale"

    def enter(make):
        made = Family(pipeline, parts_once(make), scheduler, {**SIZE, **call}, {scale: unguided})
        FAMILIES[make.__name__] = made
        return made.build

    return enter


def flow(**options):
    return functools.partial(FlowMatchEulerDiscreteScheduler, **options)


def jitter(model):
    """Zero-initialised output layers would make the network trivial: move every parameter a
    little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


# Tokenizers and text encoders


def clip_tokenizer():
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


def character_tokenizer(chat=False):
    """One token per character, for T5 and language models; with `chat`, a template that is the
    message alone."""
    vocabulary = {
        word: number
        for number, word in enumerate(["<pad>", "</s>", "<unk>", *map(chr, range(32, 127))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), behavior="isolated")
    words = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, **words
    )
    if chat:
        fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return fast


def clip(kind=transformers.CLIPTextModelWithProjection):
    config = transformers.CLIPTextConfig(
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
    return kind(config).eval()


def t5(kind="T5", layers=2):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=1000,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=layers,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def gemma(**config):
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 200,
    }
    return transformers.Gemma2Model(transformers.Gemma2Config(**sizes, **config)).eval()


LANGUAGE = {
    **dict.fromkeys(("hidden_size", "intermediate_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2),
}


def qwen3(kind):
    return kind(
        transformers.Qwen3Config(**LANGUAGE, vocab_size=200, max_position_embeddings=512)
    ).eval()


def qwen_vl():
    scaling = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    text = {**LANGUAGE, "rope_scaling": scaling, "rope_theta": 1e6, "vocab_size": 1000}
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        hidden_size=16,
        vocab_size=1000,
        vision_end_token_id=993,
        vision_start_token_id=992,
        vision_token_id=994,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


# Networks and VAEs


def unet(**config):
    made = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **config,
    )
    return jitter(made)


def autoencoder(channels, **config):
    """Halves the size once."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        **config,
    ).eval()


# In the form that came with SD3.
SHIFTED = {
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.0609,
    "scaling_factor": 1.5035,
}


# Families


def with_one_encoder(transformer, vae, text_encoder, chat=False):
    parts = {"transformer": jitter(transformer), "vae": vae.eval(), "text_encoder": text_encoder}
    return {**parts, "tokenizer": character_tokenizer(chat)}


@family(
    diffusers.StableDiffusionPipeline,
    lambda: PNDMScheduler(
        **STABLE_DIFFUSION_BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    ),
    {"guidance_scale": 5.0},
)
def sd15():
    return {
        "unet": unet(cross_attention_dim=32, attention_head_dim=4),
        "vae": autoencoder(4),
        "text_encoder": clip(transformers.CLIPTextModel),
        "tokenizer": clip_tokenizer(),
        **dict.fromkeys(("safety_checker", "feature_extractor")),
        "requires_safety_checker": False,
    }


@family(
    diffusers.StableDiffusionXLPipeline,
    lambda: EulerDiscreteScheduler(
        **STABLE_DIFFUSION_BETAS, steps_offset=1, timestep_spacing="leading"
    ),
    {"guidance_scale": 5.0},
)
def sdxl():
    network = unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )
    return {
        "unet": network,
        "vae": autoencoder(4),
        "text_encoder": clip(transformers.CLIPTextModel),
        "text_encoder_2": clip(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "add_watermarker": False,
    }


@family(
    diffusers.StableDiffusion3Pipeline,
    flow(shift=3.0),
    {"guidance_scale": 5.0, "max_sequence_length": 8},
)
def sd3():
    transformer = diffusers.SD3Transformer2DModel(
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
    return {
        "transformer": jitter(transformer),
        "vae": autoencoder(4, **SHIFTED),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip(),
        "tokenizer_2": clip_tokenizer(),
        **dict.fromkeys(("text_encoder_3", "tokenizer_3")),
    }


def flux_parts(guidance):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance,
    )
    return {
        "transformer": jitter(transformer),
        "vae": autoencoder(1, **SHIFTED),
        "text_encoder": clip(transformers.CLIPTextModel),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": character_tokenizer(),
    }


@family(
    diffusers.FluxPipeline, flow(shift=3.0, **DYNAMIC_SHIFT), {"guidance_scale": 3.5, **SHORT}, 3.5
)
def flux():
    return flux_parts(guidance=True)


@family(diffusers.FluxPipeline, flow(shift=1.0), {"guidance_scale": 0.0, **SHORT}, 0.0)
def flux_schnell():
    return flux_parts(guidance=False)


@family(
    diffusers.PixArtSigmaPipeline,
    lambda: DPMSolverMultistepScheduler(**PIXART_BETAS),
    {"guidance_scale": 5.0, **SHORT, "clean_caption": False, "use_resolution_binning": False},
)
def pixart_sigma():
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=24,
        caption_channels=32,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return with_one_encoder(transformer, autoencoder(4), t5())


@family(
    diffusers.SanaPipeline,
    lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    {
        **SANA,
        "guidance_scale": 5.0,
        "complex_human_instruction": None,
        "use_resolution_binning": False,
    },
)
def sana():
    transformer = diffusers.SanaTransformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
    )
    sides = {}
    for side, layers in (("encoder", (1, 1)), ("decoder", [1, 1])):
        sides |= {
            f"{side}_block_types": ("ResBlock", "EfficientViTBlock"),
            f"{side}_block_out_channels": (8, 8),
        }
        sides |= {f"{side}_qkv_multiscales": ((), (5,)), f"{side}_layers_per_block": layers}
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
        **sides,
    )
    text = gemma(
        head_dim=16, intermediate_size=64, num_hidden_layers=1, attn_implementation="eager"
    )
    return with_one_encoder(transformer, vae, text)


@family(
    diffusers.QwenImagePipeline,
    flow(**{**DYNAMIC_SHIFT, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}),
    {"true_cfg_scale": 3.0, "negative_prompt": "bad", "max_sequence_length": 16},
)
def qwen_image():
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.0, 0.3],
        latents_std=[1.0, 0.8, 1.2, 0.9],
    )
    return with_one_encoder(transformer, vae, qwen_vl())


@family(diffusers.ZImagePipeline, flow(shift=3.0), {"guidance_scale": 3.0, **SHORT}, 0.0)
def z_image():
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        norm_eps=1e-5,
        qk_norm=True,
        cap_feat_dim=16,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():  # left uninitialised by diffusers
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    vae = autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159)
    return with_one_encoder(transformer, vae, qwen3(transformers.Qwen3Model), chat=True)


@family(
    diffusers.Lumina2Pipeline,
    flow(shift=6.0),
    {
        "height": 32,
        "width": 48,
        "guidance_scale": 3.0,
        "max_sequence_length": 64,
        "system_prompt": "draw",
    },
)
def lumina2():
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=[4, 2, 2],
        cap_feat_dim=8,
    )
    vae = autoencoder(4, **SHIFTED)
    text = gemma(head_dim=4, intermediate_size=8, num_hidden_layers=2, sliding_window=2)
    return with_one_encoder(transformer, vae, text)


@family(
    diffusers.Flux2KleinPipeline,
    flow(shift=3.0, **DYNAMIC_SHIFT),
    {"height": 8, "width": 12, "guidance_scale": 4.0, **SHORT, "text_encoder_out_layers": (1,)},
)
def flux2_klein():
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=256,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=False,
    )
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    # statistics that do nothing would test nothing
    vae.bn.running_mean.copy_(torch.tensor([0.1, -0.2, 0.0, 0.3]))
    vae.bn.running_var.copy_(torch.tensor([1.0, 0.6, 1.4, 0.8]))
    return with_one_encoder(transformer, vae, qwen3(transformers.Qwen3ForCausalLM), chat=True)


UNGUIDED = {name: family.unguided for name, family in FAMILIES.items()}


def save_lora(pipe, folder, *, text_encoder=False, seed=0, rank=4):
    """A random LoRA for the network of a pipeline, which stays as it is, saved as diffusers'
    pipelines save theirs."""
    import peft

    layers = {}
    for part in [
        "unet" if hasattr(pipe, "unet") else "transformer",
        *["text_encoder"] * text_encoder,
    ]:
        net = copy.deepcopy(getattr(pipe, part))
        modules = (
            ["q_proj", "v_proj"] if part == "text_encoder" else ["to_q", "to_k", "to_v", "ff.net.2"]
        )
        config = peft.LoraConfig(
            r=rank, lora_alpha=8, target_modules=modules, init_lora_weights=False
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, net, "made")
        layers[f"{part}_lora_layers"] = peft.get_peft_model_state_dict(net, adapter_name="made")
    type(pipe).save_lora_weights(folder, **layers)
    return folder


@functools.cache
def shared(name):
    """One of FAMILIES that no test changes, and what is measured of it, kept once for all twins."""
    pipe = FAMILIES[name].build()
    vars(pipe)["_search_memo"] = Memo()
    return pipe
