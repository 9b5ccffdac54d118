"""What a stock call returns, as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

FIELDS = ("images", "frames", "videos")
"""What output classes call the field with what was made."""


def images_of(made: Any) -> Tensor:
    """The image (3, H, W), or video (T, 3, H, W), in [0, 1] that a stock call returned, as pictures or arrays.

    ValueError for anything else, as sound or depth.
    """
    named = [getattr(made, name) for name in FIELDS if hasattr(made, name)]
    try:
        image = _image(named[0] if named else made[0])
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        image = torch.empty(0)
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError("a search ranks images and videos in colour, and this call returns neither, but a "
                         f"{type(made).__name__}")  # fmt: skip
    return image


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
