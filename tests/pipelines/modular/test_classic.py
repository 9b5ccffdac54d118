"""Classic pipelines after `upgrade`: without search= what they were; with it, arguments are honoured, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler
from torch import Tensor

from tests.pipelines import tiny
from ttsnap import BestOfN, search
from ttsnap.pipelines import downgrade, upgrade
from ttsnap.pipelines.modular.classic import MODULAR, modular
from ttsnap.request.request import ModelDefaults
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.rng import seeded

from .classic_tables import CLASSIC, EMBEDDED, HANDLED, OTHER, PICTURES, TEXT_TO_IMAGE, arguments, stock
from .test_workflows import bright
from .tiny import CASES, built, picture

ALL = {**CLASSIC, **TEXT_TO_IMAGE}
ONE: dict[str, Any] = {"search": BestOfN(1), "reward": bright, "seed": 2, "batch_size": 1}
ALONE = {
    *("timesteps", "sigmas", "eta", "clip_skip", "clean_caption", "use_resolution_binning", "last_image"),
    *("min_seconds", "max_seconds", "system_prompt", "enable_prompt_enhancement", "prompt_max_new_tokens"),
    *("prompt_enhancement_kwargs", "prompt_enhancement_seed", "spatio_temporal_guidance_blocks"),
}
"""Arguments that cannot be changed together with all others, or not with every scheduler, tokenizer and part."""
UNCHANGED = {
    *("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"),  # without a LoRA
    *("prompt_3", "negative_prompt_3", "mu", "noise_scale", "use_cross_timestep"),  # for parts that tiny models lack
    *("decode_timestep", "decode_noise_scale", "aesthetic_score", "negative_aesthetic_score"),
    *("negative_crops_coords_top_left", "negative_original_size", "negative_target_size"),  # these go together
    *("stg_scale", "audio_stg_scale"),  # by less than 1e-6: what a tiny model skips hardly matters to it
    *("strength", "max_sequence_length", "cfg_truncation", "cfg_normalization", "guidance_scale", "clean_caption"),
}
"""Arguments whose other value changes no image of some tiny pipeline."""


def named(names: Iterable[str]) -> list[Any]:
    marks = [pytest.mark.slow, pytest.mark.timeout(1800)]
    return [pytest.param(name, marks=marks) if ALL[name].slow else name for name in names]


def twin(name: str) -> Any:
    pipe = upgrade(stock(name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(output: Any) -> Tensor:
    images: Tensor = output["frames" if "frames" in output else "images"]
    return images


def classic(name: str, **more: Any) -> Tensor:
    """What the stock call makes."""
    given = {"prompt": "a cat", "generator": seeded(2), "output_type": "pt", **ALL[name].call, **more}
    return made(stock(name)(**given))


def found(pipe: Any, name: str, **more: Any) -> Tensor:
    """What a search of one candidate from the same seed makes."""
    return made(pipe(**{"prompt": "a cat", "output_type": "pt", **ONE, **ALL[name].call, **more}))


def others(name: str) -> dict[str, Any]:
    """Another value of each argument of this pipeline's call that has one."""
    values = {**OTHER, **ALL[name].other}
    return {argument: values[argument] for argument in arguments(name) if values[argument] is not None}


def tried(pipe: Any, name: str, argument: str, value: Any) -> tuple[Tensor | None, str]:
    """What a search with this argument makes, or why it is refused."""
    try:
        return found(pipe, name, **{argument: value}), ""
    except ValueError as refusal:
        return None, str(refusal)


def check_same(name: str, image: Tensor, stock_image: Tensor) -> None:
    assert image.shape == stock_image.shape
    if not ALL[name].differs:
        assert (image.float() - stock_image.float()).abs().max() <= 1e-5


def test_the_tables_tell_of_every_pipeline_and_argument() -> None:
    for name in ALL:
        assert not set(arguments(name)) - OTHER.keys(), name
    assert not OTHER.keys() & (HANDLED | EMBEDDED | PICTURES)
    assert {case.kind for case in CLASSIC.values()} == MODULAR.keys() - {case.kind for case in TEXT_TO_IMAGE.values()}


@pytest.mark.parametrize("name", named(CLASSIC))
def test_without_search_a_classic_pipeline_is_what_it_was(name: str) -> None:
    plain, pipe = stock(name), twin(name)
    assert isinstance(pipe, type(plain))
    assert type(downgrade(pipe)) is type(plain)
    steps: list[int] = []

    def count(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return values

    given = {"prompt": "a cat", "generator": seeded(2), "output_type": "pt", **CLASSIC[name].call}
    images, *_ = pipe(**given, callback_on_step_end=count, return_dict=False)
    assert torch.equal(images, classic(name))
    assert steps


@pytest.mark.parametrize("name", named(ALL))
def test_a_search_with_other_arguments_makes_the_classic_image(name: str) -> None:
    """All that are honoured, changed at once."""
    pipe = twin(name)
    alone = ALONE - ({"system_prompt"} if name == "lumina2" else set())
    honoured = {n: value for n, value in others(name).items() if n in pipe.call_arguments() - alone}
    assert len(honoured) >= 4
    check_same(name, found(pipe, name, **honoured), classic(name, **honoured))


@pytest.mark.parametrize("name", named(ALL))
def test_what_a_search_does_not_honour_is_refused_by_name(name: str) -> None:
    pipe = twin(name)
    taken = pipe.call_arguments()
    for argument, value in others(name).items():
        if argument not in taken:
            with pytest.raises(ValueError, match=argument):
                found(pipe, name, **{argument: value})


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ALL)
def test_every_argument_alone_is_honoured_or_refused_by_name(name: str) -> None:
    pipe, before = twin(name), (found(twin(name), name), classic(name))
    for argument, value in others(name).items():
        image, refusal = tried(pipe, name, argument, value)
        if image is None:
            assert argument in refusal
            continue
        wanted = classic(name, **{argument: value})
        check_same(name, image, wanted)
        changes = [
            not (a.shape == b.shape and (a - b).abs().max() < 1e-6)
            for a, b in zip((image, wanted), before, strict=True)
        ]
        assert changes[0] == changes[1], argument
        assert changes[0] or argument in UNCHANGED, argument


def test_positions_offloading_and_parts_are_those_of_the_classic_pipeline() -> None:
    plain, pipe = stock("sdxl img2img"), twin("sdxl img2img")
    call = dict(CLASSIC["sdxl img2img"].call)
    pipe.enable_model_cpu_offload(device="cpu")
    more = {"generator": seeded(2), "output_type": "pt", **{n: v for n, v in call.items() if n != "image"}}
    assert torch.equal(pipe("a cat", None, call["image"], **more).images, classic("sdxl img2img"))
    check_same("sdxl img2img", found(pipe, "sdxl img2img"), classic("sdxl img2img"))
    pipe.remove_all_hooks()
    pipe.scheduler = EulerDiscreteScheduler.from_config(plain.scheduler.config, timestep_spacing="trailing")
    images = [pipe(prompt="a cat", generator=seeded(2), output_type="pt", **call).images]
    assert not torch.equal(images[0], classic("sdxl img2img"))
    check_same("sdxl img2img", found(pipe, "sdxl img2img"), images[0])
    pipe.preview_vae = AutoencoderTiny(latent_channels=4)
    assert Capability.PREVIEW in pipe.denoiser(**call).can


def test_defaults_of_the_classic_call_are_those_of_a_search() -> None:
    for name in ("sd3 img2img", "qwen controlnet"):  # the one guides by an empty text, the other not at all
        short = {n: v for n, v in CLASSIC[name].call.items() if n != "negative_prompt"}
        plain, pipe = stock(name), twin(name)
        given = {"prompt": "a cat", "output_type": "pt", **short}
        check_same(name, pipe(**given, **ONE).images, plain(**given, generator=seeded(2)).images)
    wan = twin("wan")(prompt="a cat", **ONE, **CLASSIC["wan"].call)
    assert wan.frames.shape == (1, 5, 32, 64, 3)  # "np"


def test_a_search_keeps_to_the_defaults_that_were_set_on_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "ttsnap.json").write_text('{"negative_prompt": "snow"}')
    name = "sdxl img2img"
    short = {n: v for n, v in CLASSIC[name].call.items() if n != "negative_prompt"}
    plain, pipe = stock(name), twin(name)
    pipe.register_to_config(_name_or_path=str(tmp_path))
    given = {"prompt": "a cat", "output_type": "pt", **short}
    check_same(name, pipe(**given, **ONE).images, classic(name))
    pipe.own_defaults = ModelDefaults()
    check_same(name, pipe(**given, **ONE).images, plain(**given, generator=seeded(2)).images)


@pytest.mark.parametrize("zeros", [True, False])
def test_settings_of_a_classic_pipeline_go_along(zeros: bool) -> None:
    parts = tiny.shared("sdxl").components
    plain = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, force_zeros_for_empty_prompt=zeros)
    plain.set_progress_bar_config(disable=True)
    given = {"prompt": "a cat", "image": picture(), "strength": 0.6, "num_inference_steps": 4, "output_type": "pt"}
    image = upgrade(plain)(**given, **ONE).images
    assert (image - plain(**given, generator=seeded(2)).images).abs().max() < 1e-5


def test_an_engine_of_a_classic_pipeline_takes_its_arguments_and_images_carry_the_modular_call() -> None:
    name = "qwen controlnet"
    engine = twin(name).engine(bright, batch_size=1, true_cfg_scale=2.5, **CLASSIC[name].call)
    (result,) = search(["a cat"], BestOfN(1), engine, seed=2)
    check_same(name, result.best.image[None], classic(name, true_cfg_scale=2.5))
    out = twin(name)(prompt="a cat", true_cfg_scale=2.5, **ONE, **CLASSIC[name].call)
    told = json.loads(out.images[0].info["ttsnap"])
    assert told["task"] == "text-to-image with ControlNet"
    assert told["call"]["guidance_scale"] == 2.5
    assert "true_cfg_scale" not in told["call"]


@pytest.mark.parametrize("name", ["wan", "wan22"])
def test_as_many_videos_come_back_as_are_asked_for(name: str) -> None:
    call, more = CLASSIC[name].call, {**ONE, "search": BestOfN(3), "num_videos_per_prompt": 2, "output_type": "pt"}
    frames = twin(name)(prompt="a cat", **more, **call).frames
    case = CASES[name]
    of_blocks = upgrade(built(case.pipeline, case.parts))(prompt="a cat", **more, **call).frames
    assert frames.shape == of_blocks.shape == (2, 5, 3, 32, 64)


def test_a_first_frame_of_another_shape_leaves_the_size_of_the_video_as_it_is() -> None:
    pipe, name = twin("wan image"), "wan image"
    assert found(pipe, name, image=picture(size=(20, 40))).shape == (1, 5, 3, 32, 64)
    with pytest.raises(ValueError, match=r"image= must be a picture of PIL with search=, got Tensor"):
        found(pipe, name, image=torch.zeros(1, 3, 32, 64))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("qwen controlnet", {"guidance_scale": 2.0}, "guidance_scale= cannot be used with search=: use true_cfg_scale"),
        ("flux2", {"joint_attention_kwargs": {}}, "unexpected keyword argument 'joint_attention_kwargs'; did you mean"),
        ("flux kontext", {"prompt_2": "x"}, "prompt_2= .*: this search gives one text to all encoders; leave it out"),
        ("wan", {"guidance_scale_2": 2.0}, "guidance_scale_2= .*: this model has one network; use guidance_scale"),
        ("wan", {"guidance_scale": 1.0}, "set guidance_scale to more than 1"),
        ("ltx2", {"spatio_temporal_guidance_blocks": []}, "blocks= must name the blocks that are perturbed"),
        ("ltx2", {"output_type": "latent"}, r"output_type must be one of \('pil', 'pt', 'np'\) under search"),
    ],
)
def test_what_is_refused_says_what_to_use(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        found(twin(name), name, **given)


def test_z_image_is_guided_by_the_scale_of_the_call() -> None:
    """Over blocks as in the classic call, whose scale counts from 0."""
    call = {**CLASSIC["z_image img2img"].call}
    pipe = modular(stock("z_image img2img"))
    images = [made(pipe(prompt="a cat", output_type="pt", guidance_scale=g, **ONE, **call)) for g in (0.0, 3.0)]
    for image, scale in zip(images, (0.0, 3.0), strict=True):
        assert (image - classic("z_image img2img", guidance_scale=scale)).abs().max() < 1e-5
    assert (images[0] - images[1]).abs().max() > 0.01
    assert torch.equal(images[0], made(pipe(prompt="a cat", output_type="pt", **ONE, **call)))


def test_a_scale_is_refused_where_nothing_reads_it() -> None:
    case = CASES["flux2_klein edit"]
    pipe = upgrade(built(case.pipeline, case.parts))
    with pytest.raises(ValueError, match=r"guidance_scale= .*: this model is not guided by a scale; leave it out"):
        pipe(prompt="a cat", guidance_scale=3.0, **ONE, **case.call)
    with pytest.raises(ValueError, match=r"^guidance_scale cannot be used here"):
        pipe.denoiser(guidance_scale=3.0, **case.call)
