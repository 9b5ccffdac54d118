"""Pictures that a stock call is given, and those that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from ttsnap.pipelines.calls.tasks import PICTURES

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
