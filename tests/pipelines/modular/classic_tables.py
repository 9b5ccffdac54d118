"""Small calls of every classic pipeline that search supports, and another value of every argument that they take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import torch

from tests.pipelines import tiny

from . import tiny as modular
from . import tiny_videos as videos


class Classic(NamedTuple):
    """A classic pipeline: its class, parts and settings, and the arguments of a small call.

    differs: whether its blocks make another image of a seed than the classic call (docs/journal/modular_pipelines.md).
    slow: whether its calls are. other: values of its own, in place of those in OTHER; None: none that its own call
    takes.
    """

    kind: str
    parts: Callable[[], Any]
    call: dict[str, Any]
    settings: Mapping[str, Any] = {}
    differs: bool = False
    slow: bool = False
    other: Mapping[str, Any] = {}


NEGATIVE = {"negative_prompt": "snow"}
SIZES = {"height": 32, "width": 48}
TALL = {"height": 64, "width": 32}
SIZE, REDRAWN, PAINTED, EDITED = modular.SIZE, modular.REDRAWN, modular.PAINTED, modular.EDITED
CLIP = {**modular.CLIP, **NEGATIVE, "height": 32, "width": 64}
SOUND = {**CLIP, "spatio_temporal_guidance_blocks": [0]}
SEEN = {"image": modular.picture(size=(64, 32))}
QWEN = {**SIZE, **NEGATIVE, "max_sequence_length": 400}  # the template's tokens come first
CLASSIC: dict[str, Classic] = {
    "sdxl img2img": Classic(
        "StableDiffusionXLImg2ImgPipeline", tiny.sdxl, {"num_inference_steps": 4, **REDRAWN, **NEGATIVE}
    ),
    "sdxl inpaint": Classic(
        "StableDiffusionXLInpaintPipeline", tiny.sdxl, {**SIZE, **PAINTED, **NEGATIVE}, differs=True
    ),
    "sdxl controlnet": Classic(
        "StableDiffusionXLControlNetPipeline",
        modular.sdxl_controlled,
        {**SIZE, "image": modular.picture(), **NEGATIVE},
    ),
    "sd3 img2img": Classic(
        "StableDiffusion3Img2ImgPipeline", tiny.sd3, {**SIZE, **REDRAWN, **NEGATIVE, "max_sequence_length": 8}
    ),
    "flux img2img": Classic("FluxImg2ImgPipeline", tiny.flux, {**SIZE, **REDRAWN, "max_sequence_length": 32}),
    "flux kontext": Classic(
        "FluxKontextPipeline",
        tiny.flux,
        modular.CASES["flux kontext"].call,
        other={"_auto_resize": None},  # which makes pictures of a megapixel
    ),
    "flux2": Classic("Flux2Pipeline", modular.flux2_dev, modular.KLEIN, other={"text_encoder_out_layers": (0,)}),
    "qwen img2img": Classic("QwenImageImg2ImgPipeline", tiny.qwen_image, {**QWEN, **REDRAWN}, differs=True, slow=True),
    "qwen inpaint": Classic("QwenImageInpaintPipeline", tiny.qwen_image, {**QWEN, **PAINTED}, differs=True, slow=True),
    "qwen controlnet": Classic(
        "QwenImageControlNetPipeline", modular.qwen_controlled, {**QWEN, "control_image": modular.picture()}
    ),
    "qwen edit": Classic("QwenImageEditPipeline", modular.qwen_edit, {**EDITED, **NEGATIVE}, slow=True),
    "qwen edit plus": Classic("QwenImageEditPlusPipeline", modular.qwen_edit, {**EDITED, **NEGATIVE}, slow=True),
    "z_image img2img": Classic(
        "ZImageImg2ImgPipeline",
        tiny.z_image,
        {**SIZE, **REDRAWN, **NEGATIVE, "max_sequence_length": 32},
        other=dict.fromkeys(SIZES),  # its own call does not resize the image
    ),
    "wan": Classic("WanPipeline", videos.wan, CLIP, other=TALL),
    "wan22": Classic("WanPipeline", videos.wan22, CLIP, {"boundary_ratio": 0.875}, other=TALL),
    "wan image": Classic(
        "WanImageToVideoPipeline",
        videos.wan_image,
        {**CLIP, **SEEN},
        other=dict.fromkeys(SIZES),  # CLIP would see a picture of another size in its own call
    ),
    "ltx": Classic("LTXPipeline", videos.ltx, CLIP, other=TALL),
    "ltx image": Classic("LTXImageToVideoPipeline", videos.ltx, {**CLIP, **SEEN}, other=TALL),
    "ltx2": Classic("LTX2Pipeline", videos.ltx2, SOUND, slow=True, other={**TALL, "num_frames": 3}),
    "ltx2 image": Classic(
        "LTX2ImageToVideoPipeline", videos.ltx2, {**SOUND, **SEEN, "image_crf": 0}, slow=True, other=TALL
    ),
}
"""Those whose searches run over blocks."""
TEXT_TO_IMAGE = {
    name: Classic(
        kind,
        tiny.FAMILIES[name].build,
        {**tiny.FAMILIES[name].call, "num_inference_steps": 4, **more},
        other={"sana": {"height": 64, "width": 96}, "lumina2": TALL, "sd15": {"clip_skip": None}}.get(name, {}),
    )
    for name, kind, more in (
        ("sd15", "StableDiffusionPipeline", {}),
        ("sdxl", "StableDiffusionXLPipeline", NEGATIVE),
        ("sd3", "StableDiffusion3Pipeline", {}),
        ("flux", "FluxPipeline", {**NEGATIVE, "true_cfg_scale": 1.5}),
        ("pixart_sigma", "PixArtSigmaPipeline", {}),
        ("sana", "SanaPipeline", {}),
        ("qwen_image", "QwenImagePipeline", {"max_sequence_length": 400}),
        ("z_image", "ZImagePipeline", {}),
        ("lumina2", "Lumina2Pipeline", {}),
        ("flux2_klein", "Flux2KleinPipeline", {}),
    )
}
"""Those with a search class of their own."""

HANDLED = {
    "self",
    "prompt",
    "generator",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "output_type",
    "return_dict",
}
"""What every search takes, and other tests try."""
EMBEDDED = {
    f"{sign}{name}"
    for sign in ("", "negative_")
    for name in ("prompt_embeds", "pooled_prompt_embeds", "prompt_embeds_mask", "prompt_attention_mask")
}
"""In place of prompts: `test_dropin` tries them where they are taken."""
PICTURES = {"image", "mask_image", "control_image"}
OTHER: dict[str, Any] = {
    **SIZES,
    **dict.fromkeys(("prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "system_prompt"), "a house"),
    "negative_prompt_3": "mud",
    "strength": 0.9,
    "num_inference_steps": 3,
    "timesteps": [900, 600, 300, 100],
    "sigmas": [1.0, 0.6, 0.3, 0.1],
    "eta": 0.7,
    "mu": 0.9,
    "guidance_scale": 2.5,
    "guidance_scale_2": 2.0,
    "true_cfg_scale": 2.5,
    "guidance_rescale": 0.5,
    "cfg_normalization": True,
    "cfg_truncation": 0.5,
    "cfg_trunc_ratio": 0.5,
    "stg_scale": 2.0,
    "modality_scale": 2.0,
    "audio_guidance_scale": 3.0,
    "audio_stg_scale": 2.0,
    "audio_modality_scale": 2.0,
    "audio_guidance_rescale": 0.3,
    "spatio_temporal_guidance_blocks": [],
    "denoising_start": 0.3,
    "denoising_end": 0.7,
    "original_size": (20, 40),
    "target_size": (22, 44),
    "crops_coords_top_left": (3, 5),
    "negative_original_size": (20, 41),
    "negative_target_size": (9, 9),
    "negative_crops_coords_top_left": (2, 4),
    "aesthetic_score": 3.0,
    "negative_aesthetic_score": 5.0,
    "clip_skip": 1,
    "max_sequence_length": 20,
    "text_encoder_out_layers": (2,),
    **{f"{kind}attention_kwargs": {"scale": 0.5} for kind in ("", "cross_", "joint_")},
    "controlnet_conditioning_scale": 0.4,
    "guess_mode": True,
    "control_guidance_start": 0.3,
    "control_guidance_end": 0.6,
    "padding_mask_crop": 4,
    "masked_image_latents": torch.zeros(1, 4, 8, 16),
    **dict.fromkeys(("latents", "audio_latents", "image_embeds"), torch.zeros(1, 4, 8, 16)),
    **{f"{sign}ip_adapter_image": modular.picture() for sign in ("", "negative_")},
    **{f"{sign}ip_adapter_image_embeds": [torch.zeros(1, 1, 4)] for sign in ("", "negative_")},
    "skip_guidance_layers": [0],
    "skip_layer_guidance_scale": 1.0,
    "skip_layer_guidance_stop": 0.9,
    "skip_layer_guidance_start": 0.1,
    "callback_on_step_end": print,
    "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    "callback": print,
    "callback_steps": 2,
    "max_area": 16 * 16,
    "_auto_resize": True,
    "caption_upsample_temperature": 0.3,
    "clean_caption": True,
    "use_resolution_binning": True,
    "complex_human_instruction": ["draw"],
    "last_image": modular.picture(1, (64, 32)),
    "num_frames": 9,
    "frame_rate": 10,
    "decode_timestep": 0.1,
    "decode_noise_scale": 0.1,
    "min_seconds": 1.0,
    "max_seconds": 2.0,
    "motion_speed": 0.5,
    "noise_scale": 0.5,
    "use_cross_timestep": True,
    "enable_prompt_enhancement": True,
    "prompt_max_new_tokens": 7,
    "prompt_enhancement_kwargs": {"do_sample": False},
    "prompt_enhancement_seed": 3,
    "image_crf": 20,
}
"""Another value of each argument than its default, which changes the image where it can."""


@functools.cache
def stock(name: str) -> Any:
    """A classic pipeline, which no test changes."""
    case = {**CLASSIC, **TEXT_TO_IMAGE}[name]
    cls = getattr(diffusers, case.kind)
    absent = dict.fromkeys(("image_encoder", "image_processor", "feature_extractor"))
    given = {**absent, **case.parts().components, **case.settings}
    pipe = cls(**{part: value for part, value in given.items() if part in inspect.signature(cls.__init__).parameters})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(name: str) -> list[str]:
    """The arguments of a classic call that a table has to tell of."""
    kind = getattr(diffusers, {**CLASSIC, **TEXT_TO_IMAGE}[name].kind)
    parameters = inspect.signature(kind.__call__).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in HANDLED | EMBEDDED | PICTURES]
