"""Ten pipelines with random weights and no text encoders, in three sizes, for
benchmarks.

"tiny" runs at once. "medium" has a denoiser of 5 to 12 GFLOP for an evaluation (with guidance: both
passes) and a small VAE, so that the network dominates even on a CPU. "full" has the denoiser and
VAE of SDXL, SD3.5 medium and FLUX.1-dev as published (their config.json on the hub), made where
they run, in the dtype in which they run; their VAEs decode one picture at a time, since many at
once take more memory than the network. Text comes as random embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers as d
import torch
from torch import Tensor

HEAD = 64
STABLE_DIFFUSION: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
PIXART: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
SHIFT: dict[str, Any] = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
# Guided by an argument of its own; the others take guidance_scale.
GUIDANCE: dict[str, Any] = {"guidance_scale": 5.0}


@dataclass(frozen=True)
class Scale:
    """width: of the hidden states, a multiple of HEAD; layers: transformer blocks; side: tokens of
    a picture's side (U-Nets: half the latents'); text: tokens of a prompt.
    """

    width: int
    layers: int
    side: int
    text: int

    @property
    def heads(self) -> int:
        return self.width // HEAD


SCALES = {"tiny": Scale(64, 1, 8, 8), "medium": Scale(512, 4, 16, 32)}


@dataclass(frozen=True)
class Case:
    """A stock pipeline, and the arguments of its call for one prompt."""

    pipe: Any
    call: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """small and full make a Case, full None where there is no full configuration."""

    small: Callable[[Scale], Case]
    full: Callable[[torch.device, torch.dtype], Case] | None = None


def build(name: str, size: str, device: torch.device, dtype: torch.dtype) -> Case:
    """A model's pipeline on `device`, in evaluation mode; the same weights in every run.

    KeyError for an unknown model. ValueError for a full configuration that is not here.
    """
    model = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if size == "full":
            if model.full is None:
                raise ValueError(f"{name} has no full configuration")
            case = model.full(device, dtype)
            case.pipe.vae.enable_slicing()
        else:
            case = model.small(SCALES[size])
            _tamed(case.pipe)
    for part in case.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe = case.pipe.to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    return Case(pipe, {name: _placed(value, device, dtype) for name, value in case.call.items()})


@contextmanager
def _made(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules made in here are made on this device, in this dtype: no copy of billions of weights
    anywhere else."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _tamed(pipe: Any) -> None:
    """Small networks leave some parameters uninitialised, which may be nan: replace those."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                if not parameter.isfinite().all() or parameter.abs().max() > 1e3:
                    torch.nn.init.normal_(parameter, std=0.02)


def _placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Embeddings in the network's dtype; masks keep theirs."""
    if isinstance(value, list):
        return [_placed(v, device, dtype) for v in value]
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


# --- text -----------------------------------------------------------------------------------------


def _text(
    tokens: int, width: int, negative: bool = True, pooled: int = 0, mask: str = ""
) -> dict[str, Any]:
    """Random embeddings as arguments of a call; pooled: their width; mask: the mask's name, after
    "prompt_"."""
    found: dict[str, Any] = {}
    for sign in ("", "negative_") if negative else ("",):
        found[f"{sign}prompt_embeds"] = torch.randn(1, tokens, width)
        if pooled:
            found[f"{sign}pooled_prompt_embeds"] = torch.randn(1, pooled)
        if mask:
            found[f"{sign}prompt_{mask}"] = torch.ones(1, tokens, dtype=torch.long)
    return found


# --- parts ----------------------------------------------------------------------------------------


def _square(pixels: int) -> dict[str, int]:
    return {"height": pixels, "width": pixels}


def _vae(channels: int, **config: Any) -> Any:
    """A small AutoencoderKL that halves the size once."""
    return d.AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        **config,
    )


def _full_vae(channels: int, **config: Any) -> Any:
    """The AutoencoderKL of Stable Diffusion, SDXL and FLUX.1."""
    return d.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        sample_size=1024,
        **config,
    )


def _flow_vae(make: Callable[..., Any], channels: int) -> Any:
    """As it came with SD3."""
    plain = {"use_quant_conv": False, "use_post_quant_conv": False}
    return make(channels, **plain, shift_factor=0.1159, scaling_factor=0.3611)


def _flow(**config: Any) -> Any:
    return d.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config})


def _unet(s: Scale, **config: Any) -> Any:
    """Two resolutions, the lower one with attention."""
    return d.UNet2DConditionModel(
        sample_size=2 * s.side,
        in_channels=4,
        out_channels=4,
        block_out_channels=(s.width // 8, s.width // 4),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        **config,
    )


# --- models ---------------------------------------------------------------------------------------


def _sd15(s: Scale) -> Case:
    pipe = d.StableDiffusionPipeline(
        unet=_unet(s, cross_attention_dim=s.width, attention_head_dim=max(1, s.heads // 4)),
        vae=_vae(4),
        scheduler=d.PNDMScheduler(
            **STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
        ),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return Case(pipe, {**_square(4 * s.side), **GUIDANCE, **_text(s.text, s.width)})


def _sdxl(s: Scale) -> Case:
    unet = _unet(
        s,
        cross_attention_dim=s.width,
        attention_head_dim=(max(1, s.heads // 8), max(1, s.heads // 4)),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + s.width,
    )
    call = {**_square(4 * s.side), **GUIDANCE, **_text(s.text, s.width, pooled=s.width)}
    return Case(_sdxl_pipe(unet, _vae(4)), call)


def _sdxl_full(device: torch.device, dtype: torch.dtype) -> Case:
    with _made(device, dtype):
        vae = _full_vae(4, scaling_factor=0.13025)
        unet = d.UNet2DConditionModel(
            sample_size=128,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    return Case(
        _sdxl_pipe(unet, vae), {**_square(1024), **GUIDANCE, **_text(77, 2048, pooled=1280)}
    )


def _sdxl_pipe(unet: Any, vae: Any) -> Any:
    return d.StableDiffusionXLPipeline(
        unet=unet,
        vae=vae,
        scheduler=d.EulerDiscreteScheduler(
            **STABLE_DIFFUSION, steps_offset=1, timestep_spacing="leading"
        ),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        add_watermarker=False,
    )


def _sd3(s: Scale) -> Case:
    transformer = d.SD3Transformer2DModel(
        sample_size=2 * s.side,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=max(1, s.layers // 2),
        attention_head_dim=HEAD,
        num_attention_heads=s.heads,
        caption_projection_dim=s.width,
        joint_attention_dim=s.width,
        pooled_projection_dim=s.width,
    )
    call = {**_square(4 * s.side), **GUIDANCE, **_text(s.text, s.width, pooled=s.width)}
    return Case(_sd3_pipe(transformer, _flow_vae(_vae, 16)), call)


def _sd35_full(device: torch.device, dtype: torch.dtype) -> Case:
    """Of Stable Diffusion 3.5 medium, whose prompts are the 77 tokens of its two CLIPs and the 256
    of T5."""
    with _made(device, dtype):
        vae = _flow_vae(_full_vae, 16)
        transformer = d.SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            caption_projection_dim=1536,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    return Case(
        _sd3_pipe(transformer, vae), {**_square(1024), **GUIDANCE, **_text(333, 4096, pooled=2048)}
    )


def _sd3_pipe(transformer: Any, vae: Any) -> Any:
    absent = {
        f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")
    }
    return d.StableDiffusion3Pipeline(transformer=transformer, vae=vae, scheduler=_flow(), **absent)


def _flux(s: Scale) -> Case:
    transformer = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=max(1, s.layers // 2),
        num_single_layers=max(1, s.layers // 2),
        attention_head_dim=HEAD,
        num_attention_heads=s.heads,
        joint_attention_dim=s.width,
        pooled_projection_dim=s.width,
        axes_dims_rope=(8, 28, 28),
        guidance_embeds=True,
    )
    call = {
        **_square(4 * s.side),
        "guidance_scale": 3.5,
        **_text(s.text, s.width, negative=False, pooled=s.width),
    }
    return Case(_flux_pipe(transformer, _flow_vae(_vae, 16)), call)


def _flux_full(device: torch.device, dtype: torch.dtype) -> Case:
    with _made(device, dtype):
        vae = _flow_vae(_full_vae, 16)
        transformer = d.FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=19,
            num_single_layers=38,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            axes_dims_rope=(16, 56, 56),
            guidance_embeds=True,
        )
    call = {**_square(1024), "guidance_scale": 3.5, **_text(512, 4096, negative=False, pooled=768)}
    return Case(_flux_pipe(transformer, vae), call)


def _flux_pipe(transformer: Any, vae: Any) -> Any:
    return d.FluxPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_flow(**SHIFT),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )


def _pixart_sigma(s: Scale) -> Case:
    transformer = d.PixArtTransformer2DModel(
        sample_size=2 * s.side,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=max(1, s.layers // 2),
        attention_head_dim=HEAD,
        num_attention_heads=s.heads,
        cross_attention_dim=s.width,
        caption_channels=s.width,
    )
    pipe = d.PixArtSigmaPipeline(
        transformer=transformer,
        vae=_vae(4),
        scheduler=d.DPMSolverMultistepScheduler(**PIXART),
        text_encoder=None,
        tokenizer=None,
    )
    text = {"negative_prompt": None, **_text(s.text, s.width, mask="attention_mask")}
    return Case(pipe, {**_square(4 * s.side), **GUIDANCE, **text, "use_resolution_binning": False})


def _sana(s: Scale) -> Case:
    side = max(16, s.side)  # the pipeline refuses pictures below 32 pixels
    transformer = d.SanaTransformer2DModel(
        sample_size=side,
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=max(1, s.layers // 2),
        num_attention_heads=s.heads,
        attention_head_dim=HEAD,
        num_cross_attention_heads=s.heads,
        cross_attention_head_dim=HEAD,
        cross_attention_dim=s.width,
        caption_channels=s.width,
    )
    vae = d.AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    pipe = d.SanaPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=d.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        text_encoder=None,
        tokenizer=None,
    )
    # The stock default of the negative prompt counts as given, beside embeddings.
    text = {"negative_prompt": None, **_text(s.text, s.width, mask="attention_mask")}
    return Case(pipe, {**_square(2 * side), **GUIDANCE, **text, "use_resolution_binning": False})


def _qwen_image(s: Scale) -> Case:
    transformer = d.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=max(1, s.layers // 2),
        attention_head_dim=HEAD,
        num_attention_heads=s.heads,
        joint_attention_dim=s.width,
        axes_dims_rope=(8, 28, 28),
    )
    vae = d.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )
    pipe = d.QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_flow(**SHIFT, shift_terminal=0.02),
        text_encoder=None,
        tokenizer=None,
    )
    return Case(
        pipe,
        {
            **_square(4 * s.side),
            "true_cfg_scale": 4.0,
            **_text(s.text, s.width, mask="embeds_mask"),
        },
    )


def _z_image(s: Scale) -> Case:
    transformer = d.ZImageTransformer2DModel(
        in_channels=16,
        dim=s.width,
        n_layers=max(1, s.layers // 4),
        n_refiner_layers=1,
        n_heads=s.heads,
        n_kv_heads=s.heads,
        cap_feat_dim=s.width,
        axes_dims=[8, 28, 28],
        axes_lens=[1024, 64, 64],
    )
    pipe = d.ZImagePipeline(
        transformer=transformer,
        vae=_flow_vae(_vae, 16),
        scheduler=_flow(),
        text_encoder=None,
        tokenizer=None,
    )
    text = {f"{sign}prompt_embeds": [torch.randn(s.text, s.width)] for sign in ("", "negative_")}
    return Case(pipe, {**_square(4 * s.side), **GUIDANCE, **text})


def _lumina2(s: Scale) -> Case:
    transformer = d.Lumina2Transformer2DModel(
        sample_size=2 * s.side,
        patch_size=2,
        in_channels=16,
        hidden_size=s.width,
        num_layers=max(1, s.layers // 4),
        num_refiner_layers=1,
        num_attention_heads=s.heads,
        num_kv_heads=s.heads,
        axes_dim_rope=(8, 28, 28),
        axes_lens=(300, 64, 64),
        cap_feat_dim=s.width,
    )
    pipe = d.Lumina2Pipeline(
        transformer=transformer,
        vae=_flow_vae(_vae, 16),
        scheduler=_flow(shift=6.0),
        text_encoder=None,
        tokenizer=None,
    )
    # the pipeline takes an eighth for the latents, whatever its VAE does
    size = _square(16 * s.side)
    return Case(pipe, {**size, **GUIDANCE, **_text(s.text, s.width, mask="attention_mask")})


def _flux2_klein(s: Scale) -> Case:
    transformer = d.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD,
        num_attention_heads=s.heads,
        joint_attention_dim=s.width,
        axes_dims_rope=(8, 16, 20, 20),
        guidance_embeds=False,
    )
    vae = d.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    pipe = d.Flux2KleinPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_flow(**SHIFT),
        text_encoder=None,
        tokenizer=None,
    )
    return Case(pipe, {**_square(4 * s.side), **GUIDANCE, **_text(s.text, s.width)})


MODELS: dict[str, Model] = {
    "sd15": Model(_sd15),
    "sdxl": Model(_sdxl, _sdxl_full),
    "sd3": Model(_sd3, _sd35_full),
    "flux": Model(_flux, _flux_full),
    "pixart_sigma": Model(_pixart_sigma),
    "sana": Model(_sana),
    "qwen_image": Model(_qwen_image),
    "z_image": Model(_z_image),
    "lumina2": Model(_lumina2),
    "flux2_klein": Model(_flux2_klein),
}
