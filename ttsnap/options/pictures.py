"""Pictures that a search starts from, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.options.option import option

TEXT = "text-to-image"
"""The task that takes no picture."""


@dataclass(frozen=True)
class PictureOptions:
    """What a model is to do, and the pictures that it does it with.

    Raises ValueError for pictures without a task that takes them, and a strength out of (0, 1].
    """

    task: str = option(
        TEXT,
        "what the model does, by the pictures that it is given: image-to-image, inpainting, editing, ...",
        metavar="TASK",
        recorded=False,
    )
    image: str | None = option(None, "the picture to change, or the first frame", metavar="FILE", recorded=False)
    mask_image: str | None = option(None, "white where it is painted anew", metavar="FILE", recorded=False)
    control_image: str | None = option(None, "what a ControlNet is shown", metavar="FILE", recorded=False)
    strength: float | None = option(
        None, "how much of the picture is redrawn, from 0 to 1", metavar="SHARE", recorded=False
    )

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if name != "task" and value is not None}
        if given and self.task == TEXT:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names}: say by --task what is done with it, as --task image-to-image")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength:g}")

    @property
    def files(self) -> dict[str, str]:
        """The files by argument of the pipeline's call."""
        named = {"image": self.image, "mask_image": self.mask_image, "control_image": self.control_image}
        return {name: path for name, path in named.items() if path is not None}
