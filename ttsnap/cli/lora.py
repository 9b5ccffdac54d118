"""--lora: the weights that post-training left, on top of a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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
    from ttsnap.pipelines.lora import add_lora

    where, scale = parse_lora(text)
    add_lora(pipe, where, _ADAPTER, f"--lora {text}")
    if scale != 1.0:
        pipe.set_adapters([_ADAPTER], [scale])
