"""What docs/reference/support.md says of what a search supports, and of what it does not."""

from __future__ import annotations

import functools
import inspect
import json
from collections import Counter

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, ControlNetModel

from ttsnap.options.every import DECLARED
from ttsnap.pipelines import makes_videos, search_class, upgrade
from ttsnap.pipelines.denoiser import PipelineDenoiser

from .modular.tiny import CASES, SLOW, twin
from .test_arguments import relative
from .tiny import FAMILIES, TOLERANCE, shared

OF_CLASS = {case.pipeline: name for name, case in CASES.items() if name not in SLOW}
"""A case of each modular pipeline that can be small."""


def other(kind, family, **parts):
    """A pipeline of another kind over the parts of a family's."""
    cls = getattr(diffusers, kind)
    parts |= {"requires_safety_checker": False} if family == "sd15" else {}
    takes = inspect.signature(cls.__init__).parameters
    return cls(**{k: v for k, v in shared(family).components.items() if k in takes}, **parts)


def test_a_controlnet_is_taken_and_left_behind_by_from_pipe():
    stock = shared("sd15")
    controlled = other(
        "StableDiffusionControlNetPipeline",
        "sd15",
        controlnet=ControlNetModel.from_unet(stock.unet),
    )
    for pipe in (controlled, other("FluxControlPipeline", "flux")):
        assert type(upgrade(pipe)).denoiser_class is PipelineDenoiser
    assert "controlnet" not in search_class(type(stock)).from_pipe(controlled).components
    with pytest.raises(ValueError, match="no pipeline of diffusers"):
        upgrade(stock.unet)


PREVIEWED = {
    "StableDiffusionXLModularPipeline",
    "StableDiffusion3ModularPipeline",
    "FluxModularPipeline",
    "FluxKontextModularPipeline",
    "ZImageModularPipeline",
}
"""Modular pipelines whose estimates an AutoencoderTiny can decode."""
OTHERS = ("qwen_image",)
"""Whose calls read of their VAE what AutoencoderTiny has not."""
SMALL = sorted({*FAMILIES, *PREVIEWED} - {*OTHERS, "flux_schnell"})


@pytest.mark.parametrize("name", SMALL)
def test_a_preview_vae_decodes(name):
    """One of the size of the pipeline's own makes images of the same size, by its own scale."""
    classic = name in FAMILIES
    pipe, call = (
        (upgrade(shared(name)), FAMILIES[name].call)
        if classic
        else (twin(OF_CLASS[name]), CASES[OF_CLASS[name]].call)
    )
    config = pipe.vae.config
    blocks = len(config.get("block_out_channels") or config["decoder_block_out_channels"])
    widths = {f"{side}_block_out_channels": (4,) * blocks for side in ("encoder", "decoder")}
    depths = {f"num_{side}_blocks": (1,) * blocks for side in ("encoder", "decoder")}
    pipe.preview_vae = AutoencoderTiny(
        latent_channels=config["latent_channels"], **widths, **depths
    ).eval()
    denoiser = pipe.denoiser(**call)
    with torch.no_grad():
        denoiser.encode(["a cat"])
        noise = denoiser.init_latents([torch.Generator().manual_seed(0)])
        preview = denoiser.preview(noise)
        assert preview.shape == denoiser.decode(noise).shape
        if classic and name not in ("flux", "flux2_klein"):  # which pack latents
            made = (pipe.preview_vae.decode(noise).sample / 2 + 0.5).clamp(0, 1)
            assert relative(preview, made) <= TOLERANCE


@pytest.mark.parametrize("name", OTHERS)
def test_a_preview_vae_that_the_call_cannot_use_is_refused(name):
    pipe = upgrade(shared(name))
    pipe.preview_vae = AutoencoderTiny()
    with pytest.raises(ValueError, match="cannot decode by preview_vae"):
        pipe.denoiser(**FAMILIES[name].call).costs()


def test_a_model_of_videos_is_known_by_what_its_class_returns(tmp_path):
    for name, moves in (
        ("SanaVideoPipeline", True),
        ("WanPipeline", True),
        ("SanaPipeline", False),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        assert makes_videos(tmp_path) is moves


def test_what_a_stock_call_takes_is_its_own_and_searches_are_asked_for_under_other_names():
    names = [name for name in dir(diffusers) if name.endswith("Pipeline")]
    kinds = [kind for name in names if isinstance(kind := getattr(diffusers, name, None), type)]
    taken = Counter[str]()
    for kind in kinds:
        if not issubclass(kind, diffusers.DiffusionPipeline):
            continue
        given = {}

        @functools.wraps(kind.__call__)
        def plain(self, *args, given=given, **kwargs):
            given.update(kwargs)

        try:
            twin = search_class(type(kind.__name__, (kind,), {"__call__": plain}))
        except ValueError:
            continue
        stock = inspect.signature(kind.__call__).parameters
        both = inspect.signature(twin.__call__).parameters
        assert all(both[name] == stock[name] for name in stock), kind
        own = [f"search_{name}" if name in stock else name for name in DECLARED]
        assert [both[name].default for name in own] == [o.default for o in DECLARED.values()]
        call = {
            each.name: object()
            for each in stock.values()
            if each.name != "self" and each.kind is not each.VAR_KEYWORD
        }
        twin.__new__(twin)(**call)
        assert given == call, kind
        taken.update(DECLARED.keys() & stock.keys())
    assert taken["batch_size"] >= 8
    assert {"frames", "seed"} <= taken.keys()
