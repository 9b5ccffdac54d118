"""Images as data URIs: pages show them without any file on disk."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from ttsnap.outputs import to_uint8

LARGE = 640


def data_uri(picture: Image.Image) -> str:
    """A small picture as WebP; without loss where it has few pixels."""
    out = io.BytesIO()
    picture.save(out, format="WEBP", lossless=max(picture.size) <= 64, quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def thumbnail_uri(image: Any, most: int = 96) -> str:
    """(3, H, W) in [0, 1] -> a data URI of at most `most` pixels a side; small images keep their pixels."""
    picture = Image.fromarray(to_uint8(image))
    picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    return data_uri(picture)


def large_uri(image: Any) -> str:
    """(3, H, W) in [0, 1] -> a data URI of at most 640 pixels a side."""
    return thumbnail_uri(image, LARGE)
