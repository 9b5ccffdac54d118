"""Classic pipelines after `upgrade`: arguments of a search are honoured, or refused."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler
from torchvision.transforms.functional import to_tensor

from tests.pipelines import tiny
from ttsnap import BestOfN, search
from ttsnap.core.prompt import Prompt
from ttsnap.pipelines import downgrade, upgrade
from ttsnap.request.request import ModelDefaults
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.rng import seeded

from . import tiny as cases
from . import tiny_videos as videos
from .tiny import CASES, ONE, bright, picture


@pytest.fixture(autouse=True)
def _seen(monkeypatch):
    """Rehearsals see what parts make by real calls, which tiny ones answer at once. That they see
    it on copies without weights is for test_workflows.py, over the same classes."""
    monkeypatch.setattr("ttsnap.pipelines.calls.dummies._compiles", lambda part: True)


class Classic(NamedTuple):
    """A classic pipeline: its class, parts and settings, and the arguments of a small call.

    slow: whether its calls are. other: values of its own, in place of those in OTHER; None: none
    that its own call takes.
    """

    kind: str
    parts: Callable[[], Any]
    call: dict[str, Any]
    settings: Mapping[str, Any] = {}
    slow: bool = False
    other: Mapping[str, Any] = {}


NEGATIVE = {"negative_prompt": "snow"}
SIZES, TALL = {"height": 32, "width": 48}, {"height": 64, "width": 32}
RESIZED = {"other": dict.fromkeys(SIZES)}  # its own call would see the image in another size
SDXL, QWEN = {**cases.SIZE, **NEGATIVE}, {**cases.QWEN, **NEGATIVE}
REDRAWN, PAINTED, CONTROLLED = cases.REDRAWN, cases.PAINTED, cases.CONTROLLED
EDITED = {**cases.EDITED, **NEGATIVE}
CLIP = {**cases.CLIP, **NEGATIVE, "height": 32, "width": 64}
SOUND = {**CLIP, "spatio_temporal_guidance_blocks": [0]}
SEEN = {"image": picture(size=(64, 32))}
LAST = {"last_image": picture(1, (20, 40))}
ROWS = {
    "sdxl img2img": (
        "StableDiffusionXLImg2Img",
        tiny.sdxl,
        {**cases.STEPS, **REDRAWN, **NEGATIVE},
        {},
    ),
    "sdxl inpaint": ("StableDiffusionXLInpaint", tiny.sdxl, {**SDXL, **PAINTED}, {}),
    "sdxl controlnet": (
        "StableDiffusionXLControlNet",
        cases.sdxl_controlled,
        {**SDXL, "image": picture()},
        {},
    ),
    "sd3 img2img": (
        "StableDiffusion3Img2Img",
        tiny.sd3,
        {**cases.GUIDED, **REDRAWN, **NEGATIVE},
        {},
    ),
    "flux img2img": ("FluxImg2Img", tiny.flux, {**cases.LONG, **REDRAWN}, {}),
    # _auto_resize makes pictures of a megapixel.
    "flux kontext": ("FluxKontext", tiny.flux, cases.KONTEXT, {"other": {"_auto_resize": None}}),
    "flux2": ("Flux2", cases.flux2_dev, cases.KLEIN, {"other": {"text_encoder_out_layers": (0,)}}),
    "qwen img2img": ("QwenImageImg2Img", tiny.qwen_image, {**QWEN, **REDRAWN}, {"slow": True}),
    "qwen inpaint": ("QwenImageInpaint", tiny.qwen_image, {**QWEN, **PAINTED}, {"slow": True}),
    "qwen controlnet": ("QwenImageControlNet", cases.qwen_controlled, {**QWEN, **CONTROLLED}, {}),
    "qwen edit": ("QwenImageEdit", cases.qwen_edit, EDITED, {"slow": True}),
    "qwen edit plus": ("QwenImageEditPlus", cases.qwen_edit, EDITED, {"slow": True}),
    "z_image img2img": (
        "ZImageImg2Img",
        tiny.z_image,
        {**cases.LONG, **REDRAWN, **NEGATIVE},
        RESIZED,
    ),
    "wan": ("Wan", videos.wan, CLIP, {"other": TALL}),
    "wan22": ("Wan", videos.wan22, CLIP, {"settings": {"boundary_ratio": 0.875}, "other": TALL}),
    "wan image": (
        "WanImageToVideo",
        videos.wan_image,
        {**CLIP, **SEEN},
        {"other": {**TALL, "last_image": None}},
    ),
    "wan last": (
        "WanImageToVideo",
        videos.wan_last,
        {**CLIP, **SEEN, **LAST},
        {"slow": True, "other": TALL},
    ),
    "ltx": ("LTX", videos.ltx, CLIP, {"other": TALL}),
    "ltx image": ("LTXImageToVideo", videos.ltx, {**CLIP, **SEEN}, {"other": TALL}),
    "ltx2": ("LTX2", videos.ltx2, SOUND, {"slow": True, "other": {**TALL, "num_frames": 3}}),
    "ltx2 image": (
        "LTX2ImageToVideo",
        videos.ltx2,
        {**SOUND, **SEEN, "image_crf": 0},
        {"slow": True, "other": TALL},
    ),
}
CLASSIC = {
    name: Classic(f"{kind}Pipeline", parts, call, **more)
    for name, (kind, parts, call, more) in ROWS.items()
}
"""Those of other tasks than images of text, and of videos."""
TEXT_TO_IMAGE = {
    name: Classic(
        family.pipeline.__name__,
        family.build,
        {**family.call, **cases.STEPS},
        other={"clip_skip": None, "use_resolution_binning": None, "width": 64},
    )
    for name, family in tiny.FAMILIES.items()
    if name != "flux_schnell"
}
ALL = {**CLASSIC, **TEXT_TO_IMAGE}

EMBEDS = ("prompt_embeds", "pooled_prompt_embeds", "prompt_embeds_mask", "prompt_attention_mask")
ELSEWHERE = {
    *(
        "self",
        "prompt",
        "generator",
        "num_images_per_prompt",
        "num_videos_per_prompt",
        "output_type",
        "return_dict",
    ),
    *("image", "mask_image", "control_image"),
    *EMBEDS,
    *(f"negative_{name}" for name in EMBEDS),
}
"""What every search takes, and what stands in place of prompts: other tests try them."""
OTHER = {
    **SIZES,
    **dict.fromkeys(
        ("prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "system_prompt"), "a house"
    ),
    **dict.fromkeys(
        ("latents", "audio_latents", "image_embeds", "masked_image_latents"),
        torch.zeros(1, 4, 8, 16),
    ),
    **{f"{kind}attention_kwargs": {"scale": 0.5} for kind in ("", "cross_", "joint_")},
    **{f"{sign}ip_adapter_image": picture() for sign in ("", "negative_")},
    **{f"{sign}ip_adapter_image_embeds": [torch.zeros(1, 1, 4)] for sign in ("", "negative_")},
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
    "controlnet_conditioning_scale": 0.4,
    "guess_mode": True,
    "control_guidance_start": 0.3,
    "control_guidance_end": 0.6,
    "padding_mask_crop": 4,
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
    "last_image": picture(1, (64, 32)),
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
ALONE = {
    *(
        "timesteps",
        "sigmas",
        "eta",
        "clip_skip",
        "clean_caption",
        "use_resolution_binning",
        "last_image",
    ),
    *(
        "min_seconds",
        "max_seconds",
        "system_prompt",
        "enable_prompt_enhancement",
        "prompt_max_new_tokens",
    ),
    *("prompt_enhancement_kwargs", "prompt_enhancement_seed", "spatio_temporal_guidance_blocks"),
    *(
        "masked_image_latents",
        "image_embeds",
        "padding_mask_crop",
        "denoising_start",
        "skip_guidance_layers",
    ),
    *(f"{sign}ip_adapter_image{form}" for sign in ("", "negative_") for form in ("", "_embeds")),
    *("guess_mode", "text_encoder_out_layers", "caption_upsample_temperature", "guidance_scale_2"),
}
"""Arguments that cannot be changed together with all others, or not with every part."""


def named(names):
    marks = [pytest.mark.slow, pytest.mark.timeout(1800)]
    return [pytest.param(name, marks=marks) if ALL[name].slow else name for name in names]


@functools.cache
def stock(name):
    """A classic pipeline, which no test changes."""
    cls = getattr(diffusers, ALL[name].kind)
    absent = dict.fromkeys(("image_encoder", "image_processor", "feature_extractor"))
    given = {**absent, **ALL[name].parts().components, **ALL[name].settings}
    takes = inspect.signature(cls.__init__).parameters
    return tiny.quiet(cls(**{part: value for part, value in given.items() if part in takes}))


def twin(name):
    return tiny.quiet(upgrade(stock(name)))


def made(output):
    images = output["frames" if "frames" in output else "images"]
    return images


def classic(name, pipe=None, **more):
    """What the stock call makes."""
    given = {
        "prompt": "a cat",
        "generator": seeded(2),
        "output_type": "pt",
        **ALL[name].call,
        **more,
    }
    return made((pipe or stock(name))(**given))


def found(pipe, name, **more):
    """What a search of one candidate from the same seed makes."""
    return made(pipe(**{"prompt": "a cat", "output_type": "pt", **ONE, **ALL[name].call, **more}))


def others(name):
    """Another value of each argument of this pipeline's call that a table has to tell of."""
    parameters = inspect.signature(getattr(diffusers, ALL[name].kind).__call__).parameters.values()
    told = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in ELSEWHERE]
    values = {**OTHER, **ALL[name].other}
    return {argument: values[argument] for argument in told if values[argument] is not None}


def check_same(name, image, stock_image):
    assert image.shape == stock_image.shape
    assert (image.float() - stock_image.float()).abs().max() <= 1e-5


def test_the_tables_tell_of_every_pipeline_and_argument():
    assert all(others(name) for name in ALL)
    assert not OTHER.keys() & ELSEWHERE


@pytest.mark.parametrize("name", named(CLASSIC))
def test_without_search_a_classic_pipeline_is_what_it_was(name):
    plain, pipe = stock(name), twin(name)
    assert isinstance(pipe, type(plain))
    assert type(downgrade(pipe)) is type(plain)
    steps = []

    def count(pipe, step, time, values):
        steps.append(step)
        return values

    given = {"prompt": "a cat", "generator": seeded(2), "output_type": "pt", **CLASSIC[name].call}
    images, *_ = pipe(**given, callback_on_step_end=count, return_dict=False)
    assert torch.equal(images, classic(name))
    assert steps


def refuses(name, change):
    """Whether the classic call fails with this argument."""
    try:
        classic(name, **change)
    except Exception:
        failed = True
    else:
        failed = False
    return failed


@pytest.mark.parametrize("name", named(ALL))
def test_arguments_are_honoured_as_in_the_classic_call_or_refused_by_name(name):
    """Those that are honoured are changed at once, but for some.

    What the classic call refuses, a search does.
    """
    pipe, changed = twin(name), others(name)
    taken = pipe.call_arguments()
    together = {argument: value for argument, value in changed.items() if argument in taken - ALONE}
    assert len(together) >= 4
    check_same(name, found(pipe, name, **together), classic(name, **together))
    for argument in changed.keys() - together.keys():
        change = {argument: changed[argument]}
        image, refused = None, ""
        try:
            image = found(pipe, name, **change)
        except Exception as error:
            refused = str(error)
        if image is None:
            assert argument in refused or "global generator" in refused or refuses(name, change)
        else:
            assert argument in taken
            check_same(name, image, classic(name, **change))


def test_positions_offloading_and_parts_are_those_of_the_classic_pipeline():
    name = "sdxl img2img"
    pipe, call = twin(name), dict(CLASSIC[name].call)
    pipe.enable_model_cpu_offload(device="cpu")
    more = {
        "generator": seeded(2),
        "output_type": "pt",
        **{n: v for n, v in call.items() if n != "image"},
    }
    assert torch.equal(pipe("a cat", None, call["image"], **more).images, classic(name))
    check_same(name, found(pipe, name), classic(name))
    pipe.remove_all_hooks()
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        stock(name).scheduler.config, timestep_spacing="trailing"
    )
    images = classic(name, pipe)
    assert not torch.equal(images, classic(name))
    check_same(name, found(pipe, name), images)
    pipe.preview_vae = AutoencoderTiny(latent_channels=4)
    assert Capability.PREVIEW in pipe.denoiser(**call).can


def test_defaults_are_those_of_the_classic_call_and_those_that_were_set_on_the_pipeline(
    tmp_path,
):
    (tmp_path / "ttsnap.json").write_text(json.dumps(NEGATIVE))
    # of the first two one guides by an empty text
    for name in (
        "sd3 img2img",
        "qwen controlnet",
        "sdxl img2img",
    ):
        short = {"prompt": "a cat", "output_type": "pt", **CLASSIC[name].call}
        del short["negative_prompt"]
        pipe, plain = twin(name), stock(name)(**short, generator=seeded(2)).images
        check_same(name, pipe(**short, **ONE).images, plain)
        if name == "sdxl img2img":
            pipe.register_to_config(_name_or_path=str(tmp_path))
            check_same(name, pipe(**short, **ONE).images, classic(name))
            pipe.own_defaults = ModelDefaults()
            check_same(name, pipe(**short, **ONE).images, plain)
    wan = twin("wan")(prompt="a cat", **ONE, **CLASSIC["wan"].call)
    assert wan.frames.shape == (1, 5, 32, 64, 3)  # "np"


def test_an_engine_of_a_classic_pipeline_takes_its_arguments_and_images_carry_the_call():
    name = "qwen controlnet"
    engine = twin(name).engine(bright, batch_size=1, true_cfg_scale=2.5, **CLASSIC[name].call)
    (result,) = search(["a cat"], BestOfN(1), engine, seed=2)
    check_same(name, result.best.image[None], classic(name, true_cfg_scale=2.5))
    out = twin(name)(prompt="a cat", true_cfg_scale=2.5, **ONE, **CLASSIC[name].call)
    told = json.loads(out.images[0].info["ttsnap"])
    assert told["task"] == "text-to-image with ControlNet"
    assert told["call"]["true_cfg_scale"] == 2.5


def test_as_many_videos_come_back_as_are_asked_for():
    more = {**ONE, "search": BestOfN(3), "num_videos_per_prompt": 2, "output_type": "pt"}
    for pipe in (twin("wan"), cases.twin("wan")):  # the classic one, and that of blocks
        assert pipe(prompt="a cat", **more, **CLASSIC["wan"].call).frames.shape == (2, 5, 3, 32, 64)


@pytest.mark.parametrize("name", ["wan image", "wan last", "ltx image"])
def test_a_first_frame_of_any_shape_is_taken_as_in_the_classic_call(name):
    """Also where it is the prompt's own, as in requests of a service."""
    frame = picture(size=(20, 40))
    own = Prompt("a cat", inputs={"image": frame})
    for image in (found(twin(name), name, image=frame), found(twin(name), name, prompt=own)):
        check_same(name, image, classic(name, image=frame))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("ltx image", "array"),
        ("sd3 img2img", "array"),
        ("flux kontext", "array"),
        *(
            (name, "tensor")
            for name in ("sdxl img2img", "sd3 img2img", "flux kontext", "wan image", "ltx image")
        ),
    ],
)
def test_a_picture_may_be_a_tensor_or_an_array_as_in_the_classic_call(name, form):
    tensor = to_tensor(CLASSIC[name].call["image"])[None]
    image = tensor if form == "tensor" else tensor.permute(0, 2, 3, 1).numpy()
    check_same(name, found(twin(name), name, image=image), classic(name, image=image))


def test_rewards_see_a_tensor_as_a_picture_whatever_its_range():
    name = "ltx image"
    tensor = to_tensor(CLASSIC[name].call["image"])[None]
    for image in (tensor, 2 * tensor - 1):
        call = twin(name).denoiser(**{**CLASSIC[name].call, "image": image})
        call.encode(["a cat"])
        torch.testing.assert_close(call.sources(torch.tensor([0])), tensor, atol=1e-6, rtol=0)


def test_a_tensor_of_several_pictures_has_one_for_each_prompt():
    name, frames = "ltx image", [picture(seed, (64, 32)) for seed in range(2)]
    tensor = torch.stack([to_tensor(frame) for frame in frames])
    more = {"prompt": ["a cat", "a dog"], "negative_prompt": ["snow", "mud"]}
    assert torch.equal(
        *(found(twin(name), name, image=image, **more) for image in (frames, tensor))
    )


def test_an_image_may_be_as_small_as_the_classic_pipeline_makes_it():
    name, small = "flux img2img", {"height": 8, "width": 8}
    check_same(name, found(twin(name), name, **small), classic(name, **small))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("flux2", {"joint_attention_kwargs": {}}, "'joint_attention_kwargs'; did you mean"),
        ("wan", {"guidance_scale_2": 2.0}, "guidance_scale_2"),
    ],
)
def test_what_is_refused_says_what_to_use(name, given, words):
    with pytest.raises((ValueError, TypeError), match=words):
        found(twin(name), name, **given)


def test_a_scale_is_refused_where_nothing_reads_it():
    pipe, call = cases.twin("flux2_klein edit"), CASES["flux2_klein edit"].call
    with pytest.raises(ValueError, match=r"guidance_scale= .* not guided"):
        pipe(prompt="a cat", guidance_scale=3.0, **ONE, **call)
