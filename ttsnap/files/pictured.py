"""Pictures of prompts: files that anyone may have written, decoded when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ttsnap.files.reading import PICTURE_BYTES, PIXELS, opened_picture, read_bytes

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""How the names of their files end."""


@dataclass(frozen=True)
class Picture:
    """A picture as its file holds it. Equal files are one picture."""

    data: bytes = field(repr=False)
    mask: bool = False
    """Whether the picture says where to paint: where it is transparent (as in OpenAI's API), else
    where it is white."""

    @classmethod
    def read(cls, path: str | Path, *, mask: bool = False) -> Picture:
        """The picture of a file. ValueError, which names the file, unless it is a whole PNG, JPEG
        or WEBP."""
        picture = cls(read_bytes(path, PICTURE_BYTES, "picture"), mask)
        picture.opened(path)
        return picture

    def opened(self, where: object = "the picture") -> Image.Image:
        """The picture in RGB; a mask in black and white, white being painted anew.

        ValueError, which names `where`, for what is no picture.
        """
        with opened_picture(self.data, where, FORMATS, PIXELS) as picture:
            if not self.mask:
                return picture.convert("RGB")
            clear = picture.mode in ("RGBA", "LA")
            pixels = np.asarray(picture.convert("RGBA" if clear else "RGB"))
        painted = pixels[..., 3] == 0 if clear else pixels.mean(-1) > 127
        return Image.fromarray((255 * painted).astype(np.uint8))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height by the file's header, without decoding. ValueError for what is no
        picture."""
        with opened_picture(self.data, "the picture", FORMATS, PIXELS) as picture:
            return picture.size

    @cached_property
    def digest(self) -> str:
        """As of `digest_of`."""
        return digest_of(self.opened())


@dataclass(frozen=True)
class Blank:
    """A picture of one colour, which gives an engine the size of the prompts' pictures.

    Engines for pictures of one size are equal, whatever the pictures show. A mask is white: all is
    painted anew.
    """

    size: tuple[int, int]
    """Width and height."""
    mask: bool = False

    def opened(self) -> Image.Image:
        return (
            Image.new("L", self.size, 255)
            if self.mask
            else Image.new("RGB", self.size, (127, 127, 127))
        )


def blanks(inputs: Mapping[str, object]) -> dict[str, object]:
    """The arguments of one prompt, with a Blank in place of each picture."""
    return {name: _blank(value) for name, value in inputs.items()}


def _blank(value: object) -> object:
    if isinstance(value, Picture):
        return Blank(value.size, value.mask)
    if isinstance(value, Image.Image):
        return Blank(value.size, value.mode in ("1", "L"))
    return tuple(map(_blank, value)) if isinstance(value, list | tuple) else value


def opened(call: Mapping[str, object]) -> dict[str, object]:
    """Arguments of a pipeline's call, with pictures, and lists of pictures, decoded."""
    arguments = dict(call)
    for name, value in call.items():
        images = [
            one if isinstance(one, Image.Image) else one.opened() for one in _pictures_in(value)
        ]
        if images:
            arguments[name] = images if isinstance(value, list | tuple) else images[0]
    return arguments


def source_of(call: Mapping[str, object]) -> Image.Image | None:
    """The picture that a call changes or keeps to: of several the first; None without any, and for
    an array."""
    for name in ("image", "control_image"):
        for one in _pictures_in(call.get(name)):
            if not isinstance(one, Blank):
                return one.opened() if isinstance(one, Picture) else one.convert("RGB")
    return None


def digests(call: Mapping[str, object]) -> dict[str, str | list[str]]:
    """Digests of the pictures among these arguments, by name; of a list of pictures a list. Arrays
    are left out."""
    by_name: dict[str, str | list[str]] = {}
    for name, value in call.items():
        shown = [one for one in _pictures_in(value) if not isinstance(one, Blank)]
        each = [one.digest if isinstance(one, Picture) else digest_of(one) for one in shown]
        if each:
            by_name[name] = each if isinstance(value, list | tuple) else each[0]
    return by_name


def digest_of(picture: Image.Image) -> str:
    """SHA-256, in hexadecimal, of a picture's size and RGB values, whatever file it is in."""
    rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def _pictures_in(value: object) -> list[Picture | Blank | Image.Image]:
    """An argument that is a picture, or a list of nothing but pictures, as a list; else none."""
    several = list(value) if isinstance(value, list | tuple) else [value]
    pictures = [one for one in several if isinstance(one, Picture | Blank | Image.Image)]
    return pictures if len(pictures) == len(several) else []
