"""--lora: the weights that post-training left, on top of a model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttsnap.files.reading import foreign

_ADAPTER = "lora"


def parse_lora(text: str) -> tuple[str, float]:
    """Folder, file or hub id, and scale, of "WHERE" or "WHERE:SCALE"; 1 where no scale is given.

    A name that ends in a colon and a number is taken whole where it exists. ValueError without a name, or with a scale
    that is not finite.
    """
    where, scale = text, 1.0
    head, _, tail = text.rpartition(":")
    if head and not Path(text).expanduser().exists():
        try:
            where, scale = head, float(tail)
        except ValueError:  # the colon belongs to the name
            where = text
    if not where.strip() or not math.isfinite(scale):
        raise ValueError(
            f"cannot read --lora {text!r}: give a folder or a hub id, and a number after it as in FOLDER:0.5"
        )
    return where, scale


def load_lora(pipe: Any, text: str) -> None:
    """Put the LoRA of --lora on a pipeline, as diffusers does, from safetensors only.

    ValueError where there is none, or where it does not fit the model.
    """
    where, scale = parse_lora(text)
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"--lora {text}: diffusers loads no LoRA into a {type(pipe).__name__}")
    path = Path(where).expanduser()
    if not path.exists() and (where.startswith((".", "/", "~")) or where.count("/") != 1):
        raise ValueError(f"--lora {text}: there is no such folder or file, and it is not a hub id")
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ValueError(f"--lora {text}: not a LoRA: there is no .safetensors file in that folder")
    source = str(path) if path.exists() else where
    with foreign(f"--lora {text}: cannot load it into a {type(pipe).__name__}"), _quiet():
        pipe.load_lora_weights(source, adapter_name=_ADAPTER, use_safetensors=True)
    if not any(_ADAPTER in names for names in pipe.get_list_adapters().values()):
        raise ValueError(
            f"--lora {text}: nothing in it belongs to a {type(pipe).__name__}; was it made for another family?"
        )
    if scale != 1.0:
        pipe.set_adapters([_ADAPTER], [scale])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' word on every network that a LoRA leaves alone, and on what the exception says again."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
