"""What a search made, as pictures: of a video all frames, or a few in one picture."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttsnap.core.arrays import FloatArray
from ttsnap.core.outcome import SHOWN, chosen

if TYPE_CHECKING:  # to write arrays takes no torch
    from torch import Tensor

Pixels: TypeAlias = "FloatArray | Tensor"
"""An image (3, H, W), or a video (T, 3, H, W), in [0, 1], an array or a tensor on any device."""
GAP = 32
"""Between them, one part in so many of a frame's width stays white."""


def to_uint8(image: Pixels) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8, rounded; videos (T, 3, H, W) -> (T, H, W, 3)."""
    on_cpu = image if isinstance(image, np.ndarray) else image.cpu()
    array = np.moveaxis(np.asarray(on_cpu, dtype=np.float64), -3, -1)
    return (array.clip(0, 1) * 255).round().astype(np.uint8)


def still(image: Pixels, columns: int = 2) -> Image.Image:
    """An image as a picture; of a video a few frames, chosen evenly, row by row in so many columns."""
    if image.ndim == 3:
        return Image.fromarray(to_uint8(image))
    frames = to_uint8(image[chosen(len(image), min(SHOWN, len(image)))])
    high, wide = frames.shape[1:3]
    gap, columns = -(-wide // GAP), min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * (wide + gap) - gap, rows * (high + gap) - gap), "white")
    for i, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (i % columns * (wide + gap), i // columns * (high + gap)))
    return sheet


def frames_of(video: Pixels) -> list[Image.Image]:
    """(T, 3, H, W) in [0, 1] -> T pictures."""
    return [Image.fromarray(frame) for frame in to_uint8(video)]


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as an address that holds it, which pages show without a file. options: of PIL's writer of this kind."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
