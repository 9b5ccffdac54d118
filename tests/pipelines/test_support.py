"""What docs/reference/support.md and README.md say of what a search supports, and of what it does not."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    AutoPipelineForImage2Image,
    ControlNetModel,
    Flux2KleinInpaintPipeline,
    FluxControlPipeline,
    FluxModularPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from peft import LoraConfig

from docs._ext import supported as matrix
from ttsnap.pipelines import FAMILIES as SUPPORTED
from ttsnap.pipelines import downgrade, search_class, upgrade
from ttsnap.pipelines.modular.workflows import WORKFLOWS

from .modular.tiny import CASES, SLOW, built
from .tiny import FAMILIES, shared

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "support.md"
OF_CLASS = {case.pipeline: name for name, case in CASES.items() if name not in SLOW}
"""A case of each modular pipeline that can be small."""


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
        (FluxControlPipeline, "flux"),
        (Flux2KleinInpaintPipeline, "flux2_klein"),
    ],
)
def test_pipelines_for_other_tasks_are_refused_by_name(kind: Any, family: str) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} yet; .*Stable"):
        upgrade(other(kind, family))


def test_a_controlnet_is_refused_and_left_behind_by_from_pipe() -> None:
    stock = shared("sd15")
    pipe = other(StableDiffusionControlNetPipeline, "sd15", controlnet=ControlNetModel.from_unet(stock.unet))
    with pytest.raises(ValueError, match="StableDiffusionControlNetPipeline yet"):
        upgrade(pipe)
    twin = search_class(type(stock)).from_pipe(pipe)
    assert "controlnet" not in twin.components


def test_the_winner_can_be_changed_by_the_stock_pipeline() -> None:
    twin = upgrade(shared("sd15"))
    assert type(AutoPipelineForImage2Image.from_pipe(downgrade(twin))) is StableDiffusionImg2ImgPipeline


def test_the_page_has_the_words_that_people_search_for() -> None:
    text = PAGE.read_text(encoding="utf-8")
    headings = " ".join(line for line in text.splitlines() if line.startswith("## "))
    for word in ("img2img", "Inpaint", "Edit", "ControlNet", "IP-Adapter", "Video"):
        assert word in headings
    assert "```{support-matrix}" in text


def test_the_table_has_every_pipeline_and_says_what_is_declared() -> None:
    assert {*SUPPORTED, *OF_CLASS} >= matrix.PREVIEWED
    found = {family.name: family for family in matrix.families()}
    made = {cls for family in found.values() for cls in family.tasks.values()}
    assert set(SUPPORTED) < made
    assert found["SDXL"].tasks["inpainting"] == "StableDiffusionXLModularPipeline"
    assert found["SDXL"].tasks["text-to-image"] == "StableDiffusionXLPipeline"
    assert found["FLUX.2 klein"].tasks.keys() == {"text-to-image", "editing"}
    head, rule, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in matrix.markdown().splitlines()]
    assert {len(line) for line in (head, rule, *lines)} == {len(head)}
    sdxl = dict(zip(head, next(line for line in lines if line[0] == "SDXL"), strict=True))
    assert (sdxl["editing"], sdxl["LoRA"], sdxl["gradients"]) == ("–", "✓", "text-to-image")
    assert dict(zip(head, lines[2], strict=True))["LoRA"] == "–"  # PixArt-Sigma


def test_the_table_tells_what_is_refused_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = replace(WORKFLOWS["ZImageModularPipeline"][1], why_not="its blocks are odd")
    monkeypatch.setitem(WORKFLOWS, "ZImageModularPipeline", (workflow,))
    assert "- Z-Image, image-to-image: its blocks are odd." in matrix.refusals()
    assert "| Z-Image | ✓ | ✗ |" in matrix.markdown()


def test_the_readme_names_every_model() -> None:
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [f.name for f in matrix.families() if f.tasks and f.name not in said] == []


def check_preview(twin: Any, call: dict[str, Any]) -> None:
    """A tiny preview VAE of the size of the pipeline's own makes images of the same size."""
    config = twin.vae.config
    blocks = len(config.get("block_out_channels") or config["decoder_block_out_channels"])
    widths = {f"{side}_block_out_channels": (4,) * blocks for side in ("encoder", "decoder")}
    depths = {f"num_{side}_blocks": (1,) * blocks for side in ("encoder", "decoder")}
    twin.preview_vae = AutoencoderTiny(latent_channels=config["latent_channels"], **widths, **depths).eval()
    denoiser = twin.denoiser(**call)
    denoiser.encode(["a cat"])
    noise = denoiser.init_latents([torch.Generator().manual_seed(0)])
    assert denoiser.preview(noise).shape == denoiser.decode(noise).shape


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"qwen_image", "flux_schnell"}))
def test_a_preview_vae_decodes_for_classic_pipelines(family: str) -> None:
    stock = shared(family)
    assert type(stock).__name__ in matrix.PREVIEWED
    check_preview(upgrade(stock), FAMILIES[family].call)


@pytest.mark.parametrize("name", sorted(matrix.PREVIEWED - {*SUPPORTED}))
def test_a_preview_vae_decodes_for_modular_pipelines_where_the_table_says_so(name: str) -> None:
    case = CASES[OF_CLASS[name]]
    check_preview(upgrade(built(case.pipeline, case.parts)), case.call)


def test_a_modular_pipeline_is_searched_with_its_lora() -> None:
    """What the table says of LoRA: adapters that diffusers puts into the network stay in force, and in the ledger."""
    case = CASES["flux image2image"]
    parts = case.parts().components
    stock = FluxModularPipeline()
    stock.update_components(**{name: part for name, part in parts.items() if name in stock.components})
    images = []
    for adapted in (False, True):
        if adapted:
            stock.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
        call: dict[str, Any] = {"prompt": "a cat", "output_type": "pt", **case.call}
        twin = upgrade(stock)
        made = twin(search="best-of-n", reward="brightness", budget="3nfe", seed=3, batch_size=1, **call)
        again = stock(generator=torch.Generator().manual_seed(3), output="images", **call)
        assert torch.equal(made.images[0], again[0])
        images.append(again[0])
    assert not torch.equal(*images)
