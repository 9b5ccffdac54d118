"""What docs/reference/support.md says of pipelines and arguments that a search does not support."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    ControlNetModel,
    Flux2KleinInpaintPipeline,
    FluxImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from ttsnap.pipelines import FAMILIES as SUPPORTED
from ttsnap.pipelines import downgrade, search_class, upgrade

from .tiny import FAMILIES, shared

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "support.md"


def other(kind: Any, family: str, **parts: Any) -> Any:
    """A pipeline of another kind over the parts of a family's."""
    takes = inspect.signature(kind.__init__).parameters
    options = {"requires_safety_checker": False} if family == "sd15" else {}
    return kind(**{k: v for k, v in shared(family).components.items() if k in takes}, **parts, **options)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        (StableDiffusionImg2ImgPipeline, "sd15"),
        (StableDiffusionInpaintPipeline, "sd15"),
        (FluxImg2ImgPipeline, "flux"),
        (Flux2KleinInpaintPipeline, "flux2_klein"),
    ],
)
def test_pipelines_for_other_tasks_are_refused_by_name(kind: Any, family: str) -> None:
    with pytest.raises(ValueError, match=rf"search does not support {kind.__name__} yet; supported are Stable"):
        upgrade(other(kind, family))


def test_a_controlnet_is_refused_and_left_behind_by_from_pipe() -> None:
    stock = shared("sd15")
    pipe = other(StableDiffusionControlNetPipeline, "sd15", controlnet=ControlNetModel.from_unet(stock.unet))
    with pytest.raises(ValueError, match="search does not support StableDiffusionControlNetPipeline yet"):
        upgrade(pipe)
    twin = search_class(type(stock)).from_pipe(pipe)
    assert "controlnet" not in twin.components


@pytest.mark.parametrize(
    ("family", "argument"),
    [
        ("sd15", "ip_adapter_image"),
        ("sdxl", "ip_adapter_image_embeds"),
        ("sd3", "ip_adapter_image"),
        ("flux", "ip_adapter_image"),
        ("flux", "negative_ip_adapter_image"),
        ("flux2_klein", "image"),
        ("sd15", "image"),
        ("sd15", "mask_image"),
    ],
)
def test_pictures_as_arguments_are_refused(family: str, argument: str) -> None:
    twin, call = upgrade(shared(family)), {**FAMILIES[family].call, "num_inference_steps": 2}
    with pytest.raises(ValueError, match=rf"{argument}.*cannot be used with search="):
        twin(prompt="a cat", search="best-of-n", reward="brightness", budget="4nfe", **call,
             **{argument: torch.zeros(1, 3, 8, 8)})  # fmt: skip


def test_the_winner_can_be_changed_by_the_stock_pipeline() -> None:
    twin = upgrade(shared("sd15"))
    assert type(AutoPipelineForImage2Image.from_pipe(downgrade(twin))) is StableDiffusionImg2ImgPipeline


def test_the_page_has_every_family_and_the_words_that_people_search_for() -> None:
    text = PAGE.read_text(encoding="utf-8")
    headings = " ".join(line for line in text.splitlines() if line.startswith("## "))
    for word in ("img2img", "Inpaint", "ControlNet", "IP-Adapter", "Video"):
        assert word in headings
    assert text.count("| yes |") >= len(SUPPORTED)
