"""What a search can do with each family of models, as a table in Markdown: read off the registries, for the pages.

Families are those of the classic pipelines with a search class (`ttsnap.pipelines.FAMILIES`) and of the modular ones
(`WORKFLOWS`); text to image goes by the classic one where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import diffusers
from diffusers.loaders.lora_base import LoraBaseMixin

from ttsnap.pipelines import FAMILIES
from ttsnap.pipelines.modular.workflows import TEXT_TO_IMAGE, WORKFLOWS

YES, NO, REFUSED = "✓", "–", "✗"
"""Marks in the table: a search does it, diffusers has no such pipeline or a search cannot, a search refuses it."""
MODELS: dict[str, str] = {
    "StableDiffusion": "Stable Diffusion 1, 2",
    "StableDiffusionXL": "SDXL",
    "StableDiffusion3": "Stable Diffusion 3, 3.5",
    "PixArtSigma": "PixArt-Sigma",
    "Flux": "FLUX.1 dev, schnell",
    "FluxKontext": "FLUX.1 Kontext",
    "Flux2": "FLUX.2 dev",
    **dict.fromkeys(("Flux2Klein", "Flux2KleinBase"), "FLUX.2 klein"),
    "QwenImage": "Qwen-Image",
    **dict.fromkeys(("QwenImageEdit", "QwenImageEditPlus"), "Qwen-Image-Edit"),
    "ZImage": "Z-Image",
    "Lumina2": "Lumina-Image 2.0",
    **dict.fromkeys(("Wan", "WanImage2Video"), "Wan 2.1"),
    **dict.fromkeys(("Wan22", "Wan22Image2Video"), "Wan 2.2"),
    "LTX": "LTX-Video",
    "LTX2": "LTX-2",
    "LTX25": "LTX-2.5",
}
"""What people call a model, by the beginning of its pipelines' names; others are called by that beginning."""
PREVIEWED = frozenset(FAMILIES) - {"QwenImagePipeline"} | {
    "StableDiffusionXLModularPipeline",
    "StableDiffusion3ModularPipeline",
    "FluxModularPipeline",
    "FluxKontextModularPipeline",
    "ZImageModularPipeline",
}
"""Pipelines whose unfinished estimates an AutoencoderTiny can decode (`preview_vae`); tests try all of them."""
PREVIEWED_BY_VIDEO_VAES = frozenset(
    {
        "QwenImagePipeline",
        "QwenImageModularPipeline",
        "WanModularPipeline",
        "WanImage2VideoModularPipeline",
        "Wan22ModularPipeline",
        "Wan22Image2VideoModularPipeline",
        "LTX2ModularPipeline",
    }
)
"""The same of a TinyVideoVAE, for whose latents there is a published file; tests try all of them."""


def _has_lora(pipeline_class: str) -> bool:
    return issubclass(getattr(diffusers, pipeline_class), LoraBaseMixin)


ABILITIES: dict[str, Callable[[str], bool]] = {
    "preview VAE": (PREVIEWED | PREVIEWED_BY_VIDEO_VAES).__contains__,
    "gradients": FAMILIES.__contains__,
    "drafts": FAMILIES.__contains__,
    "LoRA": _has_lora,
}
"""What a search may do besides, and whether it can with a pipeline class. The blocks of modular pipelines run without
gradients, and have no drafts."""


class Family(NamedTuple):
    """A model's name, the pipeline class that does each of its tasks, and why search refuses others."""

    name: str
    tasks: dict[str, str]
    refused: dict[str, str]


def families() -> list[Family]:
    """All families, those with a search class of their own first."""
    found: dict[str, Family] = {}
    for pipeline_class, task, why_not in _ways():
        start = pipeline_class.removesuffix("Pipeline").removesuffix("Modular")
        name = MODELS.get(start, start)
        family = found.setdefault(name, Family(name, {}, {}))
        if why_not is None:
            family.tasks.setdefault(task, pipeline_class)
        else:
            family.refused.setdefault(task, why_not)
    return list(found.values())


def markdown() -> str:
    """The whole table: a row for each family, a column for each task and each ability."""
    rows, tasks = families(), list(dict.fromkeys(task for _, task, _ in _ways()))
    lines = [
        [family.name, *(_done(family, task) for task in tasks), *(_able(family, can) for can in ABILITIES.values())]
        for family in rows
    ]
    return _table(["model", *tasks, *ABILITIES], lines)


def refusals() -> str:
    """A list of what search refuses though diffusers has a workflow for it, with the reasons; empty where nothing."""
    lines = [f"- {f.name}, {task}: {why}." for f in families() for task, why in f.refused.items()]
    return "\n".join(lines)


def _ways() -> Iterator[tuple[str, str, str | None]]:
    """Each pipeline class with each of its tasks, and why search refuses it or None."""
    for classic in FAMILIES:
        yield classic, TEXT_TO_IMAGE, None
    for modular, workflows in WORKFLOWS.items():
        for workflow in workflows:
            yield modular, workflow.task, workflow.why_not


def _done(family: Family, task: str) -> str:
    if task in family.tasks:
        return YES
    return REFUSED if task in family.refused else NO


def _able(family: Family, can: Callable[[str], bool]) -> str:
    """For which tasks; a mark where for all, or for none."""
    able = [task for task, pipeline_class in family.tasks.items() if can(pipeline_class)]
    if len(able) in (0, len(family.tasks)):
        return YES if able else NO
    return ", ".join(able)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
