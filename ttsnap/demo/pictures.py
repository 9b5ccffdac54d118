"""Images as data URIs: pages show them without any file on disk."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from ttsnap.outputs import to_uint8

LARGE = 512


def data_uri(picture: Image.Image, lossless: bool = False) -> str:
    """A picture as WebP."""
    out = io.BytesIO()
    picture.save(out, format="WEBP", lossless=lossless, quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def thumbnail_uri(image: Any, most: int = 96) -> str:
    """(3, H, W) in [0, 1] -> a data URI of at most `most` pixels a side; the pixels of small images stay sharp."""
    picture = Image.fromarray(to_uint8(image))
    times = most // max(picture.size)
    if times > 1:
        return data_uri(picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST), True)
    picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    return data_uri(picture)


def large_uri(image: Any) -> str:
    """(3, H, W) in [0, 1] -> a data URI of at most 512 pixels a side."""
    return thumbnail_uri(image, LARGE)
