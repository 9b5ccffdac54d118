"""Pictures that prompts are about, as files hold them, which anyone may have written."""

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


@dataclass(frozen=True)
class Picture:
    """A picture as its file holds it, which is decoded when it is needed. Equal files are one picture.

    mask: whether it says where to paint: where it is transparent, as in OpenAI's API, or white, where nothing is.
    """

    data: bytes = field(repr=False)
    mask: bool = False

    @classmethod
    def read(cls, path: str | Path, *, mask: bool = False) -> Picture:
        """From a file. ValueError, which names it, for one that is no PNG, JPEG or WEBP, or damaged."""
        picture = cls(read_bytes(path, PICTURE_BYTES, "picture"), mask)
        picture.opened(path)
        return picture

    def opened(self, where: object = "the picture") -> Image.Image:
        """In colours; a mask in black and white, white being painted anew. ValueError, which names `where`, for what is
        no picture."""
        with opened_picture(self.data, where, FORMATS, PIXELS) as picture:
            if not self.mask:
                return picture.convert("RGB")
            clear = picture.mode in ("RGBA", "LA")
            pixels = np.asarray(picture.convert("RGBA" if clear else "RGB"))
        painted = pixels[..., 3] == 0 if clear else pixels.mean(-1) > 127
        return Image.fromarray((255 * painted).astype(np.uint8))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height by the file's header: nothing is decoded, so that a large picture can be refused cheaply.
        ValueError for what is no picture."""
        with opened_picture(self.data, "the picture", FORMATS, PIXELS) as picture:
            return picture.size

    @cached_property
    def digest(self) -> str:
        """That of what it shows (`digest_of`)."""
        return digest_of(self.opened())


@dataclass(frozen=True)
class Blank:
    """A picture of one colour in place of those of the prompts, which tells an engine their size.

    Engines for pictures of one size are equal, whatever the pictures show. A mask is white: all is painted anew.
    """

    size: tuple[int, int]
    """Width and height."""
    mask: bool = False

    def opened(self) -> Image.Image:
        return Image.new("L", self.size, 255) if self.mask else Image.new("RGB", self.size, (127, 127, 127))


def blanks(inputs: Mapping[str, object]) -> dict[str, object]:
    """The arguments that a prompt gives for itself, with a Blank in place of each picture."""
    return {name: _blank(value) for name, value in inputs.items()}


def opened(call: Mapping[str, object]) -> dict[str, object]:
    """Arguments of a pipeline's call, with the pictures among them, and in lists of them, decoded."""
    return {name: _opened(value) for name, value in call.items()}


def source_of(call: Mapping[str, object]) -> Image.Image | None:
    """The picture that a call with these arguments changes or keeps to: of several the first; None without any, and
    where it is an array."""
    for name in ("image", "control_image"):
        given = call.get(name)
        for one in (given, *_several(given)):
            if isinstance(one, Picture | Image.Image):
                return one.opened() if isinstance(one, Picture) else one.convert("RGB")
    return None


def digests(call: Mapping[str, object]) -> dict[str, str | list[str]]:
    """Of the pictures among these arguments, by name, of lists of them each; those that are arrays are left out."""
    found = {name: _digest(value) for name, value in call.items()}
    return {name: digest for name, digest in found.items() if digest}


def digest_of(picture: Image.Image) -> str:
    """SHA-256 of what a picture shows, its size and its RGB values, in hexadecimal: the same in whatever file."""
    rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def _blank(value: object) -> object:
    if isinstance(value, Picture):
        return Blank(value.size, value.mask)
    return tuple(map(_blank, value)) if isinstance(value, list | tuple) else value


def _opened(value: object) -> object:
    if isinstance(value, Picture | Blank):
        return value.opened()
    several = _several(value)
    return [_opened(each) for each in several] if several else value


def _digest(value: object) -> str | list[str]:
    if isinstance(value, Picture):
        return value.digest
    if isinstance(value, Image.Image):
        return digest_of(value)
    several = [one for one in _several(value) if not isinstance(one, Blank)]
    return [one.digest if isinstance(one, Picture) else digest_of(one) for one in several]


def _several(value: object) -> list[Picture | Blank | Image.Image]:
    """The pictures of a list of nothing else."""
    several = list(value) if isinstance(value, list | tuple) else []
    return several if all(isinstance(one, Picture | Blank | Image.Image) for one in several) else []
