"""What a stock call does, by the pictures that it is given; and which class does it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from diffusers.pipelines import auto_pipeline

from ttsnap.options.model import TASKS

TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINTING, EDITING, CONTROLLED, TEXT_TO_VIDEO, IMAGE_TO_VIDEO = (
    TASKS
)
PICTURES = ("image", "mask_image", "control_image", "last_image", "video")
"""Arguments that are pictures."""
MAPPINGS: dict[str, Mapping[str, Any]] = {
    TEXT_TO_IMAGE: auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    IMAGE_TO_IMAGE: auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    INPAINTING: auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
    TEXT_TO_VIDEO: auto_pipeline.AUTO_TEXT2VIDEO_PIPELINES_MAPPING,
    IMAGE_TO_VIDEO: auto_pipeline.AUTO_IMAGE2VIDEO_PIPELINES_MAPPING,
}
"""Of diffusers: the pipeline class of each model, by task."""


def task_of(
    arguments: Collection[str], parts: Collection[str], call: Mapping[str, object]
) -> str | None:
    """What a call does; None for images of text alone.

    arguments: that the call takes. parts: of the pipeline.
    """
    given = {name for name in PICTURES if call.get(name) is not None}
    moving = "num_frames" in arguments
    if not given:
        return TEXT_TO_VIDEO if moving else None
    if moving:
        return IMAGE_TO_VIDEO
    if "mask_image" in given:
        return INPAINTING
    if "controlnet" in parts and ("control_image" in given or "control_image" not in arguments):
        return CONTROLLED
    return IMAGE_TO_IMAGE if "strength" in arguments else EDITING


def class_for(stock: Any, task: str) -> Any:
    """The pipeline class that does a task with the parts of another's.

    That is diffusers' own for it, else the class itself. ValueError where that takes no picture,
    and the task is to do something with one.
    """
    does = MAPPINGS.get(task, {})
    kind = next((does[model] for model in _models(stock) if model in does), stock)
    takes = inspect.signature(kind.__call__).parameters
    pictured = any(name in takes for name in PICTURES)
    if task not in (TEXT_TO_IMAGE, TEXT_TO_VIDEO) and not pictured:
        raise ValueError(
            f"no pipeline class of diffusers does {task} with the parts of a {stock.__name__}, "
            "whose own call takes no picture; load a model that was made for it"
        )
    return kind


def _models(stock: Any) -> list[str]:
    """The models whose pipeline class this is, for any task."""
    found = []
    for mapping in MAPPINGS.values():
        found += [model for model, kind in mapping.items() if kind is stock]
    return found
