"""The one file by which diffusers' `custom_pipeline=` loads a search pipeline of any class."""

from __future__ import annotations

import json
import logging

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from ttsnap.pipelines import custom_pipeline, search_class

from . import tiny
from .modular import tiny as cases
from .modular import tiny_videos as videos

pytestmark = pytest.mark.usefixtures("modules_cache")
ABSENT = dict.fromkeys(("text_encoder_3", "tokenizer_3"))


def load(folder, **options):
    return DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=custom_pipeline(), trust_remote_code=True, **options
    )


def pipe_of(kind, parts, **settings):
    """A pipeline of a class, of the parts that another has and the class takes."""
    cls = getattr(diffusers, kind)
    there = parts()
    components = getattr(there, "components", there)
    names, _ = cls._get_signature_keys(cls)
    taken = {name: components[name] for name in names if name in components}
    return cls(**{**dict.fromkeys(names), **taken, **settings})


MADE = {
    "a setting": lambda: pipe_of(
        "StableDiffusionXLPipeline", tiny.sdxl, force_zeros_for_empty_prompt=False
    ),
    "a controlnet": lambda: pipe_of("StableDiffusionXLControlNetPipeline", cases.sdxl_controlled),
    "an edit": lambda: pipe_of("FluxKontextPipeline", tiny.flux),
    "a video": lambda: pipe_of("WanPipeline", videos.wan22, boundary_ratio=0.875),
    "optional parts that are absent": lambda: pipe_of("WanPipeline", videos.wan),
    "a video of a picture": lambda: pipe_of("WanImageToVideoPipeline", videos.wan_image),
}


def weights(pipe):
    modules = {n: part for n, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": tensor
        for name, part in modules.items()
        for key, tensor in part.state_dict().items()
    }


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_pipeline_is_what_plain_diffusers_loads_with_search(name, dtype, tmp_path, caplog):
    MADE[name]().save_pretrained(tmp_path / "model")
    options = {} if dtype is None else {"dtype": dtype}
    plain = DiffusionPipeline.from_pretrained(tmp_path / "model", **options)
    with caplog.at_level(logging.WARNING, "diffusers"):
        caplog.clear()
        made = load(tmp_path / "model", **options)
        assert not caplog.records
    assert type(made) is search_class(type(plain))
    assert json.loads(made.to_json_string()) == json.loads(plain.to_json_string())
    assert made.name_or_path == plain.name_or_path
    own, theirs = weights(made), weights(plain)
    assert own.keys() == theirs.keys()
    for key, tensor in own.items():
        assert tensor.dtype == theirs[key].dtype
        assert torch.equal(tensor, theirs[key])


def test_parts_and_settings_that_are_passed_are_those_of_the_pipeline(tmp_path):
    MADE["a setting"]().save_pretrained(tmp_path)
    scheduler = diffusers.DDIMScheduler(**tiny.STABLE_DIFFUSION_BETAS)
    vae = tiny.autoencoder(4)
    made = load(
        tmp_path, scheduler=scheduler, vae=vae, torch_dtype=torch.bfloat16, add_watermarker=False
    )
    assert made.scheduler is scheduler
    assert made.vae is vae
    assert vae.dtype == torch.float32
    assert made.unet.dtype == torch.bfloat16
    assert made.config.force_zeros_for_empty_prompt is False
    assert made.image_encoder is None
    assert load(tmp_path, force_zeros_for_empty_prompt=True).config.force_zeros_for_empty_prompt


def test_a_missing_part_is_refused_unless_it_is_said_to_be_absent(tmp_path):
    tiny.sd3().save_pretrained(tmp_path)
    for given in ({}, {"tokenizer_3": None}):
        with pytest.raises(ValueError, match="text_encoder_3"):
            load(tmp_path, **given)
        with pytest.raises(ValueError, match="text_encoder_3"):
            DiffusionPipeline.from_pretrained(tmp_path, **given)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    made = load(tmp_path, scheduler=scheduler, **ABSENT)
    assert made.text_encoder_3 is None
    found = tiny.quiet(made)(
        "a cat",
        search="best-of-n",
        reward="brightness",
        budget="8nfe",
        seed=3,
        output_type="pt",
        **{**tiny.FAMILIES["sd3"].call, "num_inference_steps": 2},
    )
    plain = DiffusionPipeline.from_pretrained(tmp_path, scheduler=scheduler, **ABSENT)
    again = tiny.quiet(plain)(
        "a cat",
        generator=torch.Generator().manual_seed(found.search[0].best.seed),
        output_type="pt",
        **{**tiny.FAMILIES["sd3"].call, "num_inference_steps": 2},
    ).images
    torch.testing.assert_close(found.images, again, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_searched_is_refused_before_anything_is_loaded(tmp_path):
    index = {"_class_name": "NoPipeline", "_diffusers_version": "0.42.1", "vae": ["os", "system"]}
    for kind in ("NoPipeline", "AutoencoderKL", "utils", "DiffusionPipeline"):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
        with pytest.raises(ValueError, match=kind):
            load(tmp_path)


def test_of_a_loaded_pipeline_upgrade_makes_the_twin():
    with pytest.raises(ValueError, match=r"upgrade\(pipe\)"):
        DiffusionPipeline.from_pipe(
            tiny.shared("sd3"), custom_pipeline=custom_pipeline(), trust_remote_code=True
        )
