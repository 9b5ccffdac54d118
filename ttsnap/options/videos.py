"""How videos are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ttsnap.files.settings import Bounded, Bounds
from ttsnap.options.option import option


@dataclass(frozen=True)
class VideoOptions(Bounded):
    """The files of a search that makes videos. Raises ValueError for what is no speed."""

    fps: Annotated[float, Bounds(0, 240, open_low=True)] = option(
        16.0, "frames of a video that are shown in a second", metavar="N"
    )
    video_format: Literal["webp", "png", "mp4"] = option(
        "webp",
        "how videos are written: webp (animated, small), png (animated, without loss), mp4 (takes PyAV)",
        metavar="FORMAT",
    )
