"""Diffusers pipelines open to search, one file per family."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

FAMILIES: dict[str, str] = {
    "StableDiffusion3Pipeline": "ttsnap.pipelines.stable_diffusion_3:SearchStableDiffusion3Pipeline",
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

    if str(model) == EMBEDDED:
        from ttsnap.scenes import weights_path

        model = weights_path()
    looks_local = Path(model).exists() or str(model).startswith((".", "/", "~")) or str(model).count("/") != 1
    if looks_local and not (Path(model) / "model_index.json").is_file():
        raise ValueError(f"no diffusers pipeline at {model}: expected a folder with model_index.json, or a hub id")
    try:
        pipe = DiffusionPipeline.from_pretrained(model, **{"use_safetensors": True, **options})
    except OSError as error:
        raise ValueError(f"cannot load model {model}: {error}") from error
    return upgrade(pipe)


def defaults(model: str | Path = EMBEDDED) -> dict[str, Any]:
    """The call arguments that a model recommends in its folder's ttsnap.json; {} where there is none."""
    import json

    if str(model) == EMBEDDED:
        from ttsnap.scenes import weights_path

        model = weights_path()
    path = Path(model) / "ttsnap.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}
