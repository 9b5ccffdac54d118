"""Images as data URIs: pages show them without any file on disk."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttsnap.results.pixels import still

TINY, SMALL, LARGE, FULL = 64, 128, 512, 1024
"""Most pixels a side: of images that the page enlarges with sharp pixels, on the board, of the best so far, of the
winner."""


def data_uri(picture: Image.Image) -> str:
    """A picture as WebP; a tiny one as PNG, by which the style sheet knows it, to keep its pixels sharp."""
    out = io.BytesIO()
    if max(picture.size) <= TINY:
        picture.save(out, format="PNG")
        return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    picture.save(out, format="WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def thumbnail_uri(image: Any, most: int = SMALL) -> str:
    """(3, H, W) in [0, 1], or a video (T, 3, H, W), of which a few frames are shown -> a data URI of at most `most`
    pixels a side, larger images made smaller."""
    return shrunk_uri(np.asarray(still(image)), most)


def shrunk_uri(pixels: NDArray[np.uint8], most: int) -> str:
    """(H, W, 3) -> the same."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    return data_uri(picture)
