"""Diffusers pipelines open to search, one file per family."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

FAMILIES: dict[str, str] = {
    "StableDiffusion3Pipeline": "ttsnap.pipelines.stable_diffusion_3:SearchStableDiffusion3Pipeline",
    "FluxPipeline": "ttsnap.pipelines.flux:SearchFluxPipeline",
    "Flux2KleinPipeline": "ttsnap.pipelines.flux2_klein:SearchFlux2KleinPipeline",
    "QwenImagePipeline": "ttsnap.pipelines.qwen_image:SearchQwenImagePipeline",
}
EMBEDDED = "embedded"


def upgrade(pipe: Any) -> Any:
    """The search twin of a loaded stock pipeline: same weights, hooks and settings; the original stays as it is.

    Raises ValueError for a family that is not supported, with those that are.
    """
    name = type(pipe).__name__
    if name.removeprefix("Search") not in FAMILIES:
        raise ValueError(f"search does not support {name} yet; supported are {', '.join(FAMILIES)}")
    if name not in FAMILIES:
        return pipe
    module, _, attr = FAMILIES[name].partition(":")
    twin = copy.copy(pipe)
    twin.__class__ = getattr(importlib.import_module(module), attr)
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    return twin


def load(model: str | Path = EMBEDDED, **options: Any) -> Any:
    """A search pipeline from "embedded", a diffusers folder or a hub id. Options go to from_pretrained.

    Raises ValueError that says what is wrong when there is no such folder or the family is not supported.
    """
    from diffusers import DiffusionPipeline

    where = _folder(model)
    local = where.exists() or str(model).startswith((".", "/", "~")) or str(model).count("/") != 1
    if local and not (where / "model_index.json").is_file():
        raise ValueError(f"no diffusers pipeline at {model}: expected a folder with model_index.json, or a hub id")
    if local:  # diffusers asks for every part, also for those that were saved as absent (SD3 without T5)
        index = json.loads((where / "model_index.json").read_text())
        options = {**{name: None for name, kind in index.items() if kind == [None, None]}, **options}
    try:
        pipe = DiffusionPipeline.from_pretrained(where if local else model, **{"use_safetensors": True, **options})
    except OSError as error:
        raise ValueError(f"cannot load model {model}: {error}") from error
    twin = upgrade(pipe)
    if str(model) == EMBEDDED:
        from ttsnap.scenes import parse

        twin.check_prompt = parse
    return twin


def defaults(model: str | Path = EMBEDDED) -> dict[str, Any]:
    """The call arguments that a model recommends in its folder's ttsnap.json; {} where there is none."""
    path = _folder(model) / "ttsnap.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _folder(model: str | Path) -> Path:
    if str(model) == EMBEDDED:
        from ttsnap.scenes import weights_path

        return weights_path()
    return Path(model).expanduser()
