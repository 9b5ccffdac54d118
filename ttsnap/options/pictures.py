"""Pictures that a search starts from, how much of them is redrawn, and how videos are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ttsnap.files.pictured import Picture
from ttsnap.files.settings import Bounds, Settings
from ttsnap.options.model import TEXT
from ttsnap.options.option import changed, option


@dataclass(frozen=True)
class PictureOptions(Settings):
    """The pictures of all prompts, as files, and what is done with them.

    Raises ValueError for a strength out of (0, 1].
    """

    image: str | None = option(
        None, "the picture to change, or the first frame, for all prompts", metavar="FILE", common=True
    )
    mask_image: str | None = option(None, "white where it is painted anew", metavar="FILE")
    control_image: str | None = option(None, "what a ControlNet is shown", metavar="FILE")
    strength: Annotated[float, Bounds(0, 1, open_low=True)] | None = option(
        None, "how much of the picture is redrawn, from 0 to 1", metavar="SHARE"
    )

    def read(self, task: str) -> dict[str, Picture]:
        """The pictures by argument of the pipeline's call. ValueError where the task takes none, and for files that are
        none."""
        if (given := changed(self)) and task == TEXT:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names}: say by --task what is done with it, as --task image-to-image")
        named = {"image": self.image, "mask_image": self.mask_image, "control_image": self.control_image}
        files = {name: path for name, path in named.items() if path is not None}
        return {name: Picture.read(path, mask=name == "mask_image") for name, path in files.items()}


@dataclass(frozen=True)
class VideoOptions(Settings):
    """The files of a search that makes videos. Raises ValueError for what is no speed."""

    fps: Annotated[float, Bounds(0, 240, open_low=True)] = option(
        16.0, "frames of a video that are shown in a second", metavar="N"
    )
    video_format: Literal["webp", "png", "mp4"] = option(
        "webp",
        "how videos are written: webp (animated, small), png (animated, without loss), mp4 (takes PyAV)",
        metavar="FORMAT",
    )
