"""Stock pipelines of classes that no family knows, over tiny parts, and a small call of each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers

from tests.pipelines import tiny
from tests.pipelines.modular import tiny as modular
from tests.pipelines.modular import tiny_videos as videos
from ttsnap.pipelines.memory.flops import Memo

STEPS = {"num_inference_steps": 4}


class Case(NamedTuple):
    """A class of diffusers, whose parts it takes, and the arguments of a small call."""

    family: str
    call: Mapping[str, Any]
    more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda parts: {}
    """Further parts, of those that there are."""


def controlnet(parts: Mapping[str, Any]) -> dict[str, Any]:
    channels = {"conditioning_embedding_out_channels": (16, 32)}
    net = diffusers.ControlNetModel.from_unet(parts["unet"], **channels)
    return {"controlnet": tiny.jitter(net)}


def sixteen(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Networks for latents of 16 channels."""
    transformer = modular.remade(parts["transformer"], in_channels=16, out_channels=16)
    vae = modular.remade(parts["vae"], latent_channels=16)
    return {"transformer": tiny.jitter(transformer), "vae": tiny.jitter(vae)}


def motion(parts: Mapping[str, Any]) -> dict[str, Any]:
    adapter = diffusers.MotionAdapter(
        block_out_channels=parts["unet"].config.block_out_channels,
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    return {"motion_adapter": tiny.jitter(adapter)}


def lcm(parts: Mapping[str, Any]) -> dict[str, Any]:
    """A network that reads the guidance scale."""
    unet = diffusers.UNet2DConditionModel.from_config(parts["unet"].config, time_cond_proj_dim=8)
    scheduler = diffusers.LCMScheduler(**tiny.STABLE_DIFFUSION_BETAS)
    return {"scheduler": scheduler, "unet": tiny.jitter(unet)}


def flow_map(parts: Mapping[str, Any]) -> dict[str, Any]:
    """A network that reads the time to arrive at."""
    net = diffusers.AnyFlowTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=16,
    )
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=3.0)
    return {**videos.wan_parts(), "transformer": tiny.jitter(net), "scheduler": scheduler}


SEEN = {"image": modular.picture(size=(24, 16))}
REDRAWN = {**SEEN, "strength": 0.6}
SIZE = {**tiny.SIZE, **STEPS}
PAINTED = {**REDRAWN, "mask_image": modular.mask().resize((24, 16))}
CASES = {
    "StableDiffusionImg2ImgPipeline": Case("sd15", {**STEPS, **REDRAWN}),
    "StableDiffusionControlNetPipeline": Case("sd15", {**STEPS, **SEEN}, controlnet),
    "StableDiffusionPAGPipeline": Case("sd15", SIZE),
    "LatentConsistencyModelPipeline": Case("sd15", SIZE, lcm),
    "AnimateDiffPipeline": Case("sd15", {**SIZE, "num_frames": 3}, motion),
    "AnyFlowPipeline": Case("sd15", {**modular.CLIP, **STEPS, "height": 16}, flow_map),
    "StableDiffusionXLPAGPipeline": Case("sdxl", SIZE),
    "StableDiffusion3InpaintPipeline": Case("sd3", {**SIZE, **tiny.SHORT, **PAINTED}, sixteen),
    "FluxInpaintPipeline": Case("flux", {**SIZE, **tiny.SHORT, **PAINTED}),
    "PixArtAlphaPipeline": Case("pixart_sigma", {**SIZE, "use_resolution_binning": False}),
    "Flux2KleinInpaintPipeline": Case(
        "flux2_klein",
        {
            **tiny.FAMILIES["flux2_klein"].call,
            **STEPS,
            "image": modular.picture(size=(64, 64)),
            "mask_image": modular.mask().resize((64, 64)),
        },
    ),
}


@functools.cache
def stock(name: str) -> Any:
    """The stock pipeline of a case, which no test changes, and what rehearsals saw of its parts."""
    case, cls = CASES[name], getattr(diffusers, name)
    parts = dict(tiny.FAMILIES[case.family].build().components)
    parts |= {"requires_safety_checker": False, "safety_checker": None, "feature_extractor": None}
    parts |= case.more(parts)
    takes = inspect.signature(cls.__init__).parameters
    pipe = tiny.quiet(cls(**{part: value for part, value in parts.items() if part in takes}))
    pipe._search_memo = Memo()
    return pipe


@functools.cache
def with_sound() -> Any:
    """A stock pipeline for a picture that goes on as a video with its sound."""
    takes = inspect.signature(diffusers.LTX2ImageToVideoPipeline.__init__).parameters
    parts = videos.ltx2().components
    given = {part: parts[part] for part in parts if part in takes}
    return tiny.quiet(diffusers.LTX2ImageToVideoPipeline(**given))


SOUND = {
    **STEPS,
    "image": modular.picture(size=(64, 32)),
    "height": 32,
    "width": 64,
    "num_frames": 5,
    "image_crf": 0,
}
"""The arguments of a small call of that."""
