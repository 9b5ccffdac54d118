"""Pictures and tasks: which arguments of stock calls are pictures, what a call makes of them, and which
class does a task."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines import auto_pipeline
from torch import Tensor

from ttsnap.options.model import TASKS

# --- What a stock call does, by the pictures that it is given; and which class does it ------------

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


# --- Pictures that a stock call is given, and those that it returns -------------------------------

VIDEO = "video"
FIELDS = ("images", "frames", "videos")
"""What output classes call the field with what was made."""


class NoPictureError(ValueError):
    """What a stock call returned is no picture, or none in the form that was asked for."""


def pictures_for(call: Mapping[str, Any], n: int | None = None) -> dict[str, Sequence[Any]]:
    """Arguments that are several pictures or videos, n of them.

    They are lists, or tensors and arrays (n, ...). Frames are one video.
    """
    found: dict[str, Sequence[Any]] = {}
    for name in PICTURES:
        value: Any = call.get(name)
        moves = name == VIDEO
        if isinstance(value, list | tuple) and n in (None, len(value)):
            if not moves or any(_is_video(each) for each in value):
                found[name] = value
        elif _axes(value) == 4 + moves and len(value) > 1 and n in (None, len(value)):
            found[name] = [value[i : i + 1] for i in range(len(value))]
    return found


def _is_video(value: Any) -> bool:
    """Whether an entry of a list has several frames."""
    return isinstance(value, list | tuple) or _axes(value) > 3


def _axes(value: Any) -> int:
    """Of a tensor or array; 0 of anything else."""
    return getattr(value, "ndim", 0)


def source_of(image: Any) -> Tensor:
    """The picture that a call changes, the first of several, as (1, 3, h, w) in [0, 1]."""
    first = image[0] if isinstance(image, list | tuple) else image
    made: Tensor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False).preprocess(first)
    return made / 2 + 0.5 if made.min() < 0 else made


def main_of(made: Any) -> Any:
    """The pictures among what a stock call returned, as it returned them."""
    named = [getattr(made, name) for name in FIELDS if hasattr(made, name)]
    return named[0] if named else made[0]


def several_of(made: Any, n: int) -> list[Tensor]:
    """The n images or videos that a stock call returned, as of `images_of`."""
    pictures = main_of(made)
    if n == 1:
        return [images_of(made)]
    if len(pictures) != n:
        raise NoPictureError(f"{n} pictures are wanted, and {len(pictures)} came")
    return [images_of((pictures[i : i + 1],)) for i in range(n)]


def images_of(made: Any) -> Tensor:
    """The image (3, H, W), or video (T, 3, H, W), in [0, 1] that a stock call returned.

    Where it is transparent, it lies on white. NoPictureError for anything else, as sound or depth.
    """
    try:
        image = _image(main_of(made))
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        image = torch.empty(0)
    if image.ndim in (3, 4) and image.shape[-3] == 4:  # as Qwen-Image-2.1 makes it
        colour, alpha = image.split([3, 1], dim=-3)
        image = colour * alpha + 1 - alpha
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise NoPictureError(
            "a search ranks images and videos in colour, and this call returns neither, but a "
            f"{type(made).__name__}"
        )
    return image


def alike(some: Any, others: Any) -> bool:
    """Whether pictures are of one type and shape, and begin with the same values."""
    first = _array(some)
    second = _array(others)
    return (
        type(some) is type(others)
        and first.shape == second.shape
        and np.allclose(first.flat[:999], second.flat[:999], atol=1e-2)
    )


def _array(pictures: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pictures.float().cpu() if isinstance(pictures, Tensor) else pictures)


def sound_of(made: Any) -> Tensor | None:
    """The sound (1, channels, samples) of a video that a stock call returned, if it has any."""
    sound = getattr(made, "audio", None)
    return sound if isinstance(sound, Tensor) else None


def _image(made: Any) -> Tensor:
    while isinstance(made, list | tuple) and len(made) == 1:
        made = made[0]
    if isinstance(made, Tensor):
        return made[0] if made.ndim > 3 and len(made) == 1 else made
    if isinstance(made, np.ndarray):
        made = made[0] if made.ndim > 3 and len(made) == 1 else made
        return torch.from_numpy(made).movedim(-1, -3)
    if isinstance(made, list | tuple):
        return torch.stack([_image(one) for one in made])
    pixels: Tensor = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(made))
    return pixels[0]
