"""The model, and how it is kept in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MaxLen

from ttsnap.core.names import nearest
from ttsnap.files.settings import Name, Settings, Word
from ttsnap.options.option import Offered, option

EMBEDDED = "embedded"
"""The name of the model that comes with ttsnap."""
TURBO = "scenes-turbo"
"""The name of the embedded model's few-step version, which takes no guidance."""
TEXT = "text-to-image"
"""The task that takes no picture."""
TASKS = (
    TEXT,
    "image-to-image",
    "inpainting",
    "editing",
    "text-to-image with ControlNet",
    "text-to-video",
    "image-to-video",
)
"""What models do; which class does what: ttsnap.pipelines.calls.pictures."""
_SHORT = {"img": "image", "txt": "text", "vid": "video", "i": "image", "t": "text", "v": "video"}
SIGNS = "signs"
"""The name of the embedded model that writes words."""
PACKAGED = (EMBEDDED, TURBO, SIGNS)
"""All models that come with ttsnap (ttsnap.pipelines.packaged); each reads prompts of its own world
only."""


def parse_lora(text: str) -> tuple[str, float]:
    """Folder, file or hub id, and scale, of "WHERE" or "WHERE:SCALE"; 1 where no scale is given.

    A name that ends in a colon and a number is taken whole where it exists. ValueError without a
    name, or with a scale that is not finite.
    """
    where = text
    scale = 1.0
    head, _, tail = text.rpartition(":")
    if head and not Path(text).expanduser().exists():
        try:
            where = head
            scale = float(tail)
        except ValueError:  # the colon belongs to the name
            where = text
    if not where.strip() or not math.isfinite(scale):
        raise ValueError(
            f"cannot read --lora {text!r}: give a folder or a hub id, and a number after it as in"
            " FOLDER:0.5"
        )
    return where, scale


@dataclass(frozen=True)
class ModelOptions(Settings):
    """A model, its device, and what saves memory or time there.

    Raises ValueError for an unknown task.
    """

    model: str = option(
        EMBEDDED,
        "embedded, scenes-turbo, signs, a diffusers folder, or a hub id",
        loads="model",
        common=True,
        offered=Offered(Word | None, "the name of the model that is served"),
    )
    lora: str | None = option(
        None,
        "LoRA on top of the model: folder, .safetensors file or hub id, with its scale as"
        " FOLDER:0.5",
        loads="model",
        offered=Offered(
            Name | dict[str, Any] | Annotated[list[Any], MaxLen(64)] | None,
            'a LoRA that is offered, as NAME or {"name": NAME, "scale": NUMBER}; or a list of'
            " several",
        ),
    )
    task: str = option(
        TEXT,
        "what the model does, by the pictures that it is given: image-to-image, inpainting,"
        " editing, ...",
        metavar="TASK",
        common=True,
    )
    device: str = option("auto", "auto, cpu, gpu, cuda, cuda:1, mps", common=True)
    dtype: str = option(
        "auto",
        "auto (bfloat16; float16 on a GPU without its instructions, float32 on such a CPU),"
        " float32, bfloat16, float16",
        common=True,
    )
    offload: Literal["none", "model", "group"] = option(
        "none",
        "keep in RAM what the GPU does not need just now: none, whole networks (model) or single"
        " layers (group)",
        metavar="WHAT",
        recorded=False,
    )
    preview_vae: str | None = option(
        None,
        "decodes unfinished estimates: an AutoencoderTiny (hub id or folder), as"
        " madebyollin/taesdxl for SDXL, or the .safetensors file of a TAEHV, as taew2_1 for Wan",
        metavar="VAE",
        loads="model",
        recorded=False,
    )
    attention: str = option("sdpa", "attention kernels: sdpa, xformers, flash, ...", recorded=False)
    compile: bool = option(
        False, "compile the denoiser: slow at first, then faster", recorded=False
    )

    @property
    def loras(self) -> tuple[str, ...]:
        """The LoRA, where there is one."""
        return () if self.lora is None else (self.lora,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            # img2img, txt2img, t2v: how other tools call them.
            words = "-to-".join(_SHORT.get(word, word) for word in self.task.casefold().split("2"))
            near = nearest(words, TASKS)
            meant = f"did you mean {near}? Choose" if near is not None else "choose"
            raise ValueError(f"unknown task {self.task!r:.80}; {meant} one of {', '.join(TASKS)}")
