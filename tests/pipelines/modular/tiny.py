"""Tiny modular pipelines, of the parts of classic ones, and a small call of each workflow."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import transformers
from PIL import Image
from torchvision.transforms.functional import to_tensor

from tests.golden import tiny_vlm
from tests.pipelines import tiny
from ttsnap import BestOfN
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.memory.memo import Memo
from ttsnap.sampling.rng import seeded

from . import tiny_videos as videos
from .tiny_videos import components_once


class Case(NamedTuple):
    """A workflow of a pipeline class."""

    pipeline: str
    parts: Callable[[], Any]
    """Makes the classic pipeline whose parts it takes."""
    call: dict[str, Any]
    """The arguments of a small call."""
    tolerance: float = 2e-5
    """How far images may differ between batch shapes."""
    single: float = 0.0
    """And for one row alone: more than nothing where the last block makes pictures of 8 bits."""


def picture(seed=0, size=(32, 16)):
    """A random picture of this width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask():
    """White, to be painted anew, on the right half of a picture."""
    pixels = np.zeros((16, 32), dtype=np.uint8)
    pixels[:, 16:] = 255
    return Image.fromarray(pixels)


@components_once
def sdxl_controlled():
    parts = tiny.sdxl().components
    net = diffusers.ControlNetModel.from_unet(
        parts["unet"], conditioning_embedding_out_channels=(16, 32)
    )
    return {**parts, "controlnet": tiny.jitter(net)}


@components_once
def qwen_controlled():
    parts = tiny.qwen_image().components
    net = diffusers.QwenImageControlNetModel.from_transformer(parts["transformer"], 1, 16, 3)
    return {**parts, "controlnet": tiny.jitter(net)}


@components_once
def qwen_edit():
    """Qwen-Image's parts for edits, whose text encoder looks at the picture, of a megapixel."""
    parts = tiny.qwen_image().components
    with tempfile.TemporaryDirectory() as folder:
        tiny_vlm.write_backbone(Path(folder), "qwen2_5_vl")
        config = transformers.AutoConfig.from_pretrained(folder)
        encoder = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
        processor = transformers.AutoProcessor.from_pretrained(folder)
    net = remade(parts["transformer"], joint_attention_dim=tiny_vlm.HIDDEN)
    vae = remade(parts["vae"], dim_mult=[1, 1, 1, 1], temperal_downsample=[False, False, True])
    own = {
        "text_encoder": encoder,
        "processor": processor,
        "transformer": tiny.jitter(net),
        "vae": vae.eval(),
    }
    return {**parts, **own}


def remade(part, **changes):
    """Another of the same settings but for these."""
    return type(part).from_config({**part.config, **changes})


@components_once
def flux2_dev():
    """FLUX.2 klein's parts, with Mistral for the texts, and a network that reads the scale."""
    parts = tiny.FAMILIES["flux2_klein"].parts()
    shared = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Mistral3Config(
        text_config={
            **shared,
            "vocab_size": 200,
            "hidden_size": 16,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
        vision_config={**shared, "hidden_size": 16, "image_size": 8, "patch_size": 4},
        image_token_index=199,
    )
    tokenizer = tiny.character_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    # What the system message says, which is long, is left out.
    template = (
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'][0]['text'] }}{% endfor %}"
    )
    net = remade(parts["transformer"], guidance_embeds=True)
    looks = transformers.PixtralImageProcessor()
    return {
        **parts,
        "text_encoder": transformers.Mistral3ForConditionalGeneration(config).eval(),
        "tokenizer": transformers.PixtralProcessor(
            looks, tokenizer, patch_size=4, chat_template=template
        ),
        "transformer": tiny.jitter(net),
        "scheduler": tiny.flow(shift=3.0, **tiny.DYNAMIC_SHIFT)(),
    }


STEPS = {"num_inference_steps": 4}
# Of two sides that differ, each a multiple of what every pipeline asks for.
SIZE = {"height": 16, "width": 32, **STEPS}
REDRAWN = {"image": picture(), "strength": 0.6}
PAINTED = {"image": picture(), "mask_image": mask(), "strength": 0.8}
# Without a negative prompt stock blocks guide by the prompt itself, and a search by an empty one.
GUIDED = {**SIZE, "max_sequence_length": 8, "negative_prompt": ""}
LONG = {**SIZE, **tiny.SHORT}
QWEN = {**SIZE, "max_sequence_length": 400}  # the template's tokens come first
CLIP = {"height": 8, "width": 16, "num_frames": 5, **STEPS, "max_sequence_length": 16}
LTX = {**CLIP, "height": 16, "width": 32}
KLEIN = {**LONG, "text_encoder_out_layers": (1,)}
KLEIN_EDIT = {**KLEIN, "image": picture(size=(64, 80))}
EDITED = {"num_inference_steps": 2, "image": picture()}
SEEN = {"image": picture()}
CONTROLLED = {"control_image": picture()}
KONTEXT = {**LONG, **SEEN, "_auto_resize": False, "max_area": 16 * 32}
CALLS = [
    ("StableDiffusionXL", tiny.sdxl, {"sdxl": SIZE, "sdxl image2image": {**SIZE, **REDRAWN}}),
    ("StableDiffusionXL", tiny.sdxl, {"sdxl inpainting": {**SIZE, **PAINTED}}),
    ("StableDiffusionXL", sdxl_controlled, {"sdxl controlnet": {**SIZE, **CONTROLLED}}),
    ("StableDiffusion3", tiny.sd3, {"sd3": GUIDED, "sd3 image2image": {**GUIDED, **REDRAWN}}),
    ("Flux", tiny.flux, {"flux": LONG, "flux image2image": {**LONG, **REDRAWN}}),
    ("FluxKontext", tiny.flux, {"flux kontext": KONTEXT}),
    (
        "QwenImage",
        tiny.qwen_image,
        {"qwen_image": QWEN, "qwen_image image2image": {**QWEN, **REDRAWN}},
    ),
    ("QwenImage", tiny.qwen_image, {"qwen_image inpainting": {**QWEN, **PAINTED}}),
    ("QwenImage", qwen_controlled, {"qwen_image controlnet": {**QWEN, **CONTROLLED}}),
    ("QwenImageEdit", qwen_edit, {"qwen_image edit": EDITED}),
    ("QwenImageEditPlus", qwen_edit, {"qwen_image edit plus": EDITED}),
    ("Flux2Klein", tiny.flux2_klein, {"flux2_klein": KLEIN, "flux2_klein edit": KLEIN_EDIT}),
    (
        "Flux2KleinBase",
        tiny.flux2_klein,
        {"flux2_klein_base": KLEIN, "flux2_klein_base edit": KLEIN_EDIT},
    ),
    (
        "Flux2",
        flux2_dev,
        {"flux2_dev": {**KLEIN, "guidance_scale": 3.0}, "flux2_dev edit": KLEIN_EDIT},
    ),
    ("ZImage", tiny.z_image, {"z_image": LONG, "z_image image2image": {**LONG, **REDRAWN}}),
    ("Wan", videos.wan, {"wan": CLIP}),
    ("WanImage2Video", videos.wan_image, {"wan image2video": {**CLIP, **SEEN}}),
    (
        "WanImage2Video",
        videos.wan_last,
        {"wan first and last frame": {**CLIP, **SEEN, "last_image": picture(1)}},
    ),
    ("Wan22", videos.wan22, {"wan22": CLIP}),
    ("Wan22Image2Video", videos.wan22_image, {"wan22 image2video": {**CLIP, **SEEN}}),
    ("LTX", videos.ltx, {"ltx": LTX, "ltx image2video": {**LTX, **SEEN}}),
    ("LTX2", videos.ltx2, {"ltx2": CLIP, "ltx2 image2video": {**CLIP, **SEEN, "image_crf": 0}}),
]
CASES = {
    name: Case(f"{kind}ModularPipeline", parts, call)
    for kind, parts, calls in CALLS
    for name, call in calls.items()
}
# Its last block makes pictures of 8 bits, whatever is asked for.
CASES["qwen_image inpainting"] = CASES["qwen_image inpainting"]._replace(
    tolerance=0.6 / 255, single=0.5 / 255
)


@functools.cache
def built(pipeline, parts):
    """A stock modular pipeline of the parts of a classic one; no test changes it.

    FLOPs are counted once for all searches with it, as that takes longer than they do.
    """
    pipe = getattr(diffusers, pipeline)()
    pipe._search_memo = Memo()
    pipe.update_components(
        **{n: part for n, part in parts().components.items() if n in pipe.components}
    )
    return pipe


def stock(name):
    return built(CASES[name].pipeline, CASES[name].parts)


def twin(name):
    return tiny.quiet(upgrade(stock(name)))


def image_of(name, seed, prompt, pipe=None, **more):
    """The image (3, H, W), or video (T, 3, H, W), that the stock pipeline makes from a seed."""
    form = "pil" if name == "qwen_image inpainting" else "pt"
    how = {"output_type": form, "output": ["images", "videos"], **CASES[name].call, **more}
    made = (pipe or stock(name))(prompt=prompt, generator=seeded(seed), **how)
    (image,) = next(images for images in made.values() if images is not None)
    return to_tensor(image) if isinstance(image, Image.Image) else image


def bright(images, prompts):
    return images.mean((1, 2, 3))


ONE = {"search": BestOfN(1), "reward": bright, "seed": 2, "batch_size": 1}
"""A search of one candidate, which is the image of its seed."""


SLOW = {"wan first and last frame", "wan22 image2video", "ltx2 image2video", "flux2_dev edit"}
SLOW |= {name for name in CASES if "qwen_image edit" in name}
"""Those whose pictures cannot be small, and those of which other cases run all parts."""


def named(fast=CASES, names=CASES):
    """The names of cases, as parameters of a test, which is slow but for the fast ones."""
    slow = [pytest.mark.slow, pytest.mark.timeout(1800)]
    found = []
    for name in names:
        quick = name in fast and name not in SLOW
        found.append(pytest.param(name, marks=[] if quick else slow))
    return found
