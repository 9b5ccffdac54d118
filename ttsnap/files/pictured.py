"""Pictures and videos that anyone may have written: those of prompts, decoded when they are needed;
the texts that files carry, and their pixels."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ttsnap.files.reading import PICTURE_BYTES, PIXELS, foreign, opened_picture, read_bytes

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


FRAMES = 4096
"""Most frames of a video that are looked at."""
ALL_PIXELS = 2**28
"""Most pixels of all frames of one video, three bytes each: 291 frames of 1280 x 720. A few
kilobytes may hold thousands of large frames of one colour."""
_UTF16 = b"UNICODE\0"
_OURS = "ttsnap:"
"""Prefix of a picture's description that holds the JSON of ttsnap."""


def is_mp4(data: bytes) -> bool:
    """Whether these bytes begin as an mp4 does."""
    return data[4:8] == b"ftyp"


def texts_in(data: bytes, where: object, formats: Sequence[str] = ("PNG",)) -> dict[str, str]:
    """The texts that a picture in one of these formats, or an mp4, carries, by key; its pixels are
    not decoded.

    Of EXIF data they are the user comment, where tools write infotext, as "parameters", and what
    `exif_with` wrote.

    ValueError for other formats, and for damage; for an mp4 where PyAV is not installed.
    """
    if is_mp4(data):
        with foreign(f"cannot read {where} as an mp4"), _opened_mp4(data) as container:
            return {str(key): str(value) for key, value in container.metadata.items()}
    with opened_picture(data, where, formats, PIXELS) as picture:
        texts = {str(key): value for key, value in picture.info.items() if isinstance(value, str)}
        with warnings.catch_warnings():  # of damage, which shows in what is not there
            warnings.simplefilter("ignore", UserWarning)
            exif = picture.getexif()
            described = exif.get(ExifTags.Base.ImageDescription)
            comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(described, str) and described.startswith(_OURS):
        texts.setdefault("ttsnap", described.removeprefix(_OURS))
    if isinstance(comment, bytes) and comment.startswith(_UTF16):
        texts.setdefault(
            "parameters", comment.removeprefix(_UTF16).decode("utf-16-be", errors="replace")
        )
    return texts


def is_video(data: bytes, where: object, formats: Sequence[str]) -> bool:
    """Whether this is an mp4, or an animated picture in one of these formats. ValueError as of
    `texts_in`."""
    if is_mp4(data):
        return True
    with opened_picture(data, where, formats, PIXELS) as picture:
        return int(getattr(picture, "n_frames", 1)) > 1


def exif_with(texts: Mapping[str, str]) -> Image.Exif:
    """EXIF data from which `texts_in` reads "parameters" and "ttsnap" (JSON in ASCII)."""
    exif = Image.Exif()
    if "ttsnap" in texts:
        exif[ExifTags.Base.ImageDescription] = _OURS + json.dumps(json.loads(texts["ttsnap"]))
    if "parameters" in texts:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _UTF16 + texts[
            "parameters"
        ].encode("utf-16-be")
    return exif


def video_pixels(
    data: bytes, where: object, formats: Sequence[str], most: int = PIXELS
) -> NDArray[np.uint8]:
    """(T, H, W, 3) uint8 of an animated picture in one of these formats, or an mp4; T is 1 for a
    still picture.

    ValueError as of `texts_in`, for more frames than are read here, and for more pixels of one than
    `most`.
    """
    if is_mp4(data):
        return _mp4_pixels(data, where, most)
    with opened_picture(data, where, formats, most) as picture:
        count = int(getattr(picture, "n_frames", 1))
        _check(count, picture.width, picture.height, most)
        frames = []
        for i in range(count):
            picture.seek(i)
            # a frame may be larger than the first one
            _check(count, picture.width, picture.height, most)
            frames.append(np.array(picture.convert("RGB")))
    return _stacked(frames)


def _stacked(frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(T, H, W, 3) of T frames of one size. Each is freed as it is copied, so that memory holds no
    frame twice."""
    stack = np.empty((len(frames), *frames[0].shape), np.uint8)
    for i, frame in enumerate(frames):
        stack[i], frames[i] = frame, frame[:0]
    return stack


def _check(frames: int, wide: int, high: int, most: int) -> None:
    if frames > FRAMES or wide * high > most or frames * wide * high > ALL_PIXELS:
        raise ValueError(f"{frames} frames of {wide} x {high} pixels are more than is read here")


def _opened_mp4(data: bytes) -> Any:
    """A container to read from.

    The format is fixed and the data is in memory: no other file is opened, as playlists may ask
    for.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("an mp4 takes PyAV, which the extra video installs") from error
    return av.open(io.BytesIO(data), "r", format="mp4")


def _mp4_pixels(data: bytes, where: object, most: int) -> NDArray[np.uint8]:
    frames: list[NDArray[np.uint8]] = []
    with foreign(f"cannot read {where} as an mp4"), _opened_mp4(data) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        stream = container.streams.video[0]
        _check(1, stream.width, stream.height, most)
        # a later frame may say that it is larger
        stream.codec_context.options = {"max_pixels": str(2 * most)}
        for frame in container.decode(video=0):
            _check(len(frames) + 1, frame.width, frame.height, most)
            frames.append(frame.to_ndarray(format="rgb24"))
        if not frames or len({frame.shape for frame in frames}) > 1:
            raise ValueError(f"it holds {len(frames)} frames, which must be of one size")
    return _stacked(frames)
