"""What a search can do with each family of models, as a table in Markdown: read off the registry,
for the pages."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
from diffusers.loaders.lora_base import LoraBaseMixin

from ttsnap.pipelines import FAMILIES

YES, NO = "✓", "–"
MODELS: dict[str, str] = {
    "StableDiffusion": "Stable Diffusion 1, 2",
    "StableDiffusionXL": "SDXL",
    "StableDiffusion3": "Stable Diffusion 3, 3.5",
    "PixArtSigma": "PixArt-Sigma",
    "Flux": "FLUX.1 dev, schnell",
    "Flux2Klein": "FLUX.2 klein",
    "QwenImage": "Qwen-Image",
    "ZImage": "Z-Image",
    "Lumina2": "Lumina-Image 2.0",
}
"""What people call a model, by the beginning of its pipeline's name; others are called by that
beginning."""
PREVIEWED = frozenset(FAMILIES) - {"QwenImagePipeline"}
"""Pipelines whose unfinished estimates an AutoencoderTiny can decode (`preview_vae`); tests try all
of them."""
PREVIEWED_BY_VIDEO_VAES = frozenset({"QwenImagePipeline"})
"""The same of a TinyVideoVAE, for whose latents there is a published file; tests try it."""


def _has_lora(pipeline_class: str) -> bool:
    return issubclass(getattr(diffusers, pipeline_class), LoraBaseMixin)


ABILITIES: dict[str, Callable[[str], bool]] = {
    "preview VAE": (PREVIEWED | PREVIEWED_BY_VIDEO_VAES).__contains__,
    "variety": FAMILIES.__contains__,
    "LoRA": _has_lora,
}
"""What a search may do besides, and whether it can with a pipeline class."""


def families() -> dict[str, str]:
    """The pipeline class of each model by name."""
    starts = {
        pipeline_class: pipeline_class.removesuffix("Pipeline") for pipeline_class in FAMILIES
    }
    return {MODELS.get(start, start): pipeline_class for pipeline_class, start in starts.items()}


def markdown() -> str:
    """The whole table: a row for each family, a column for each ability."""
    rows = [["model", "pipeline", *ABILITIES], ["---"] * (2 + len(ABILITIES))]
    for name, pipeline_class in families().items():
        able = [YES if can(pipeline_class) else NO for can in ABILITIES.values()]
        rows.append([name, f"`{pipeline_class}`", *able])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
