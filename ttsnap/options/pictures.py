"""Pictures that a search starts from, and how much of them is redrawn."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.files.pictured import Picture
from ttsnap.options.model import TEXT
from ttsnap.options.option import changed, option


@dataclass(frozen=True)
class PictureOptions:
    """The pictures of all prompts, as files, and what is done with them.

    Raises ValueError for a strength out of (0, 1].
    """

    image: str | None = option(
        None, "the picture to change, or the first frame, for all prompts", metavar="FILE", common=True
    )
    mask_image: str | None = option(None, "white where it is painted anew", metavar="FILE")
    control_image: str | None = option(None, "what a ControlNet is shown", metavar="FILE")
    strength: float | None = option(None, "how much of the picture is redrawn, from 0 to 1", metavar="SHARE")

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength:g}")

    def read(self, task: str) -> dict[str, Picture]:
        """The pictures by argument of the pipeline's call. ValueError where the task takes none, and for files that are
        none."""
        if (given := changed(self)) and task == TEXT:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names}: say by --task what is done with it, as --task image-to-image")
        named = {"image": self.image, "mask_image": self.mask_image, "control_image": self.control_image}
        files = {name: path for name, path in named.items() if path is not None}
        return {name: Picture.read(path, mask=name == "mask_image") for name, path in files.items()}
