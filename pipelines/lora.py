"""LoRA weights from a folder, a file or the hub, put on a pipeline."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttsnap.files.hub import require_repository
from ttsnap.files.reading import foreign

SAFE_PEFT = "0.20"
"""The first peft that does not import whatever module a LoRA's file names (its `megatron_core`)."""
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
    add_lora(pipe, where, _ADAPTER, f"--lora {text}")
    if scale != 1.0:
        pipe.set_adapters([_ADAPTER], [scale])


def add_lora(pipe: Any, where: str, adapter: str, said: str) -> None:
    """Load a LoRA under this adapter name, as diffusers does, from safetensors only.

    where: a folder, a .safetensors file, a hub id, or a hub id and a file of it (owner/name/file.safetensors). said:
    what messages begin with. ValueError where there is none, or where it does not fit the pipeline.
    """
    from diffusers.utils.import_utils import is_peft_available, is_peft_version

    family = type(pipe).__name__
    if is_peft_available() and is_peft_version("<", SAFE_PEFT):
        raise ValueError(f"{said}: peft before {SAFE_PEFT} runs a module that the file of a LoRA may name; update it: "
                         f"pip install -U 'peft>={SAFE_PEFT}'")  # fmt: skip
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{said}: diffusers loads no LoRA into a {family}")
    path = Path(where).expanduser()
    source, file = (str(path), None) if path.exists() else hub_file(where, said)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ValueError(f"{said}: not a LoRA: there is no .safetensors file in that folder")
    named = {} if file is None else {"weight_name": file}
    with foreign(f"{said}: cannot load it into a {family}"), _quiet():
        require_repository(source)
        pipe.load_lora_weights(source, adapter_name=adapter, use_safetensors=True, **named)
    if not any(adapter in names for names in pipe.get_list_adapters().values()):
        raise ValueError(f"{said}: nothing in it belongs to a {family}; was it made for another family?")


def hub_file(where: str, said: str) -> tuple[str, str | None]:
    """A hub id, and the file of it that is meant; ValueError for a text that is neither."""
    parts = where.split("/")
    if where.startswith((".", "/", "~")) or len(parts) < 2 or not all(part.strip() for part in parts):
        raise ValueError(f"{said}: there is no such folder or file, and it is not a hub id")
    if len(parts) > 2 and not where.endswith(".safetensors"):
        raise ValueError(f"{said}: there is no such folder or file, and it is not a hub id")
    return "/".join(parts[:2]), "/".join(parts[2:]) or None


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
