"""Tiny modular pipelines, of the same random parts as the classic ones, and a small call of each workflow."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, FlowMatchEulerDiscreteScheduler, QwenImageControlNetModel
from PIL import Image
from transformers import (
    AutoConfig,
    AutoProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5_VLForConditionalGeneration,
)

from tests.golden import tiny_vlm
from tests.pipelines import tiny
from ttsnap.pipelines.memory.flops import Memo

from . import tiny_videos as videos


class Case(NamedTuple):
    """A workflow of a pipeline class: the classic pipeline whose parts it takes, and the arguments of a small call."""

    pipeline: str
    parts: Callable[[], Any]
    call: dict[str, Any]
    tolerance: float = 2e-5
    """How far images may differ between batch shapes."""
    single: float = 0.0
    """And for one row in a batch of one: more than nothing where the last block makes pictures of 8 bits."""


def picture(seed: int = 0, size: tuple[int, int] = (32, 16)) -> Image.Image:
    """A random picture of this width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask(size: tuple[int, int] = (32, 16)) -> Image.Image:
    """White, to be painted anew, on the right half of a picture of this width and height."""
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[:, size[0] // 2 :] = 255
    return Image.fromarray(pixels)


def sdxl_controlled() -> Any:
    """SDXL's parts, with a ControlNet."""
    parts = tiny.sdxl().components
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(16, 32))
    return Parts({**parts, "controlnet": tiny.jitter(net)})


def qwen_controlled() -> Any:
    """Qwen-Image's parts, with a ControlNet."""
    parts = tiny.qwen_image().components
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = QwenImageControlNetModel.from_transformer(parts["transformer"], 1, 16, 3)
    return Parts({**parts, "controlnet": tiny.jitter(net)})


def qwen_edit() -> Any:
    """Qwen-Image's parts for edits, whose text encoder looks at the picture, too. Pictures have a megapixel."""
    parts = tiny.qwen_image().components
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_vlm.write_backbone(Path(folder), "qwen2_5_vl")
        encoder = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder)).eval()
        processor = AutoProcessor.from_pretrained(folder)
        config = {**parts["transformer"].config, "joint_attention_dim": tiny_vlm.HIDDEN}
        net = type(parts["transformer"]).from_config(config)
        vae = type(parts["vae"]).from_config({**parts["vae"].config, "dim_mult": [1, 1, 1, 1],
                                              "temperal_downsample": [False, False, True]})  # fmt: skip
    own = {"text_encoder": encoder, "processor": processor, "transformer": tiny.jitter(net), "vae": vae.eval()}
    return Parts({**parts, **own})


@tiny.parts_once
def _flux2_dev() -> tiny.Parts:
    parts = tiny.flux2_klein_parts()
    shared = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config={**shared, "vocab_size": 200, "hidden_size": 16, "num_key_value_heads": 1, "head_dim": 8},
        vision_config={**shared, "hidden_size": 16, "image_size": 8, "patch_size": 4},
        image_token_index=199,
    )
    tokenizer = tiny.character_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    # What the system message says, which is long, is left out.
    template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'][0]['text'] }}{% endfor %}"
    net = type(parts["transformer"]).from_config({**parts["transformer"].config, "guidance_embeds": True})
    return {
        **parts,
        "text_encoder": Mistral3ForConditionalGeneration(config).eval(),
        "tokenizer": PixtralProcessor(PixtralImageProcessor(), tokenizer, patch_size=4, chat_template=template),
        "transformer": tiny.jitter(net),
        "scheduler": FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **tiny.DYNAMIC_SHIFT}),
    }


def flux2_dev() -> Any:
    """FLUX.2 klein's parts, with Mistral as the text encoder, and a network that is told the guidance scale."""
    return Parts(_flux2_dev())


class Parts(NamedTuple):
    """Stands for a classic pipeline: nothing but its parts."""

    components: dict[str, Any]


STEPS = {"num_inference_steps": 4}
# Of two sides that differ, each a multiple of what every pipeline asks for.
SIZE = {"height": 16, "width": 32, **STEPS}
REDRAWN = {"image": picture(), "strength": 0.6}
PAINTED = {"image": picture(), "mask_image": mask(), "strength": 0.8}
# Without a negative prompt stock blocks guide by the prompt itself, and a search by an empty one.
GUIDED = {"max_sequence_length": 8, "negative_prompt": ""}
CLIP = {"height": 8, "width": 16, "num_frames": 5, **STEPS, "max_sequence_length": 16}
LTX = {**CLIP, "height": 16, "width": 32}
KLEIN = {**SIZE, "max_sequence_length": 32, "text_encoder_out_layers": (1,)}
EDITED = {"num_inference_steps": 2, "image": picture()}
# Of Qwen-Image 400 tokens are read, as those of its template come first.
CASES: dict[str, Case] = {
    "sdxl": Case("StableDiffusionXLModularPipeline", tiny.sdxl, SIZE),
    "sdxl image2image": Case("StableDiffusionXLModularPipeline", tiny.sdxl, {**SIZE, **REDRAWN}),
    "sd3": Case("StableDiffusion3ModularPipeline", tiny.sd3, {**SIZE, **GUIDED}),
    "sd3 image2image": Case("StableDiffusion3ModularPipeline", tiny.sd3, {**SIZE, **REDRAWN, **GUIDED}),
    "flux": Case("FluxModularPipeline", tiny.flux, {**SIZE, "max_sequence_length": 32}),
    "flux image2image": Case("FluxModularPipeline", tiny.flux, {**SIZE, **REDRAWN, "max_sequence_length": 32}),
    "flux kontext": Case(
        "FluxKontextModularPipeline",
        tiny.flux,
        {**SIZE, "image": picture(), "_auto_resize": False, "max_area": 16 * 32, "max_sequence_length": 32},
    ),
    "qwen_image": Case("QwenImageModularPipeline", tiny.qwen_image, {**SIZE, "max_sequence_length": 400}),
    "qwen_image image2image": Case(
        "QwenImageModularPipeline", tiny.qwen_image, {**SIZE, **REDRAWN, "max_sequence_length": 400}
    ),
    "sdxl inpainting": Case("StableDiffusionXLModularPipeline", tiny.sdxl, {**SIZE, **PAINTED}),
    "qwen_image inpainting": Case(
        # Its last block makes pictures of 8 bits, whatever is asked for.
        "QwenImageModularPipeline",
        tiny.qwen_image,
        {**SIZE, **PAINTED, "max_sequence_length": 400},
        0.6 / 255,
        0.5 / 255,
    ),
    "flux2_klein": Case("Flux2KleinModularPipeline", tiny.flux2_klein, KLEIN),
    "flux2_klein edit": Case("Flux2KleinModularPipeline", tiny.flux2_klein, {**KLEIN, "image": picture(size=(64, 80))}),
    "flux2_klein_base": Case("Flux2KleinBaseModularPipeline", tiny.flux2_klein, KLEIN),
    "flux2_klein_base edit": Case(
        "Flux2KleinBaseModularPipeline", tiny.flux2_klein, {**KLEIN, "image": picture(size=(64, 80))}
    ),
    "flux2_dev": Case("Flux2ModularPipeline", flux2_dev, {**KLEIN, "guidance_scale": 3.0}),
    "flux2_dev edit": Case("Flux2ModularPipeline", flux2_dev, {**KLEIN, "image": picture(size=(64, 80))}),
    "sdxl controlnet": Case("StableDiffusionXLModularPipeline", sdxl_controlled, {**SIZE, "control_image": picture()}),
    "qwen_image controlnet": Case(
        "QwenImageModularPipeline", qwen_controlled, {**SIZE, "control_image": picture(), "max_sequence_length": 400}
    ),
    "qwen_image edit": Case("QwenImageEditModularPipeline", qwen_edit, EDITED),
    "qwen_image edit plus": Case("QwenImageEditPlusModularPipeline", qwen_edit, EDITED),
    "z_image": Case("ZImageModularPipeline", tiny.z_image, {**SIZE, "max_sequence_length": 32}),
    "z_image image2image": Case("ZImageModularPipeline", tiny.z_image, {**SIZE, **REDRAWN, "max_sequence_length": 32}),
    "wan": Case("WanModularPipeline", videos.wan, CLIP),
    "wan image2video": Case("WanImage2VideoModularPipeline", videos.wan_image, {**CLIP, "image": picture()}),
    "wan first and last frame": Case(
        "WanImage2VideoModularPipeline",
        videos.wan_last,
        {**CLIP, "image": picture(), "last_image": picture(1)},
    ),
    "wan22": Case("Wan22ModularPipeline", videos.wan22, CLIP),
    "wan22 image2video": Case("Wan22Image2VideoModularPipeline", videos.wan22_image, {**CLIP, "image": picture()}),
    "ltx": Case("LTXModularPipeline", videos.ltx, LTX),
    "ltx image2video": Case("LTXModularPipeline", videos.ltx, {**LTX, "image": picture()}),
    "ltx2": Case("LTX2ModularPipeline", videos.ltx2, CLIP),
    "ltx2 image2video": Case("LTX2ModularPipeline", videos.ltx2, {**CLIP, "image": picture(), "image_crf": 0}),
}


@functools.cache
def built(pipeline: str, parts: Callable[[], Any]) -> Any:
    """A stock modular pipeline of the parts of a classic one; no test changes it. FLOPs are counted once for all
    searches with it, as that takes longer than they do."""
    pipe = getattr(diffusers, pipeline)()
    pipe._search_memo = Memo()
    pipe.update_components(**{n: part for n, part in parts().components.items() if n in pipe.components})
    for block in pipe._blocks.sub_blocks.values():
        _quiet(block)
    return pipe


def _quiet(block: Any) -> None:
    """Without progress bars of loops."""
    if isinstance(block, diffusers.modular_pipelines.modular_pipeline.LoopSequentialPipelineBlocks):
        block.set_progress_bar_config(disable=True)
    else:
        for inner in getattr(block, "sub_blocks", {}).values():
            _quiet(inner)


SLOW = {name for name in CASES if "qwen_image edit" in name} | {
    "wan first and last frame",
    "wan22 image2video",
    "ltx2 image2video",
    "flux2_dev edit",
}
"""Those whose pictures cannot be small, and those of which other cases run all parts."""


def named(fast: Collection[str] = CASES) -> list[Any]:
    """The names of the cases, as parameters of a test, which is slow but for these."""
    marks = [pytest.mark.slow, pytest.mark.timeout(1800)]
    return [pytest.param(name, marks=marks) if name in SLOW or name not in fast else name for name in CASES]
