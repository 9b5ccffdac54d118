"""Files that may come from strangers, read as data: bounded, checked, and refused in one sentence
that names them.

Every reader of the toolkit goes through here (docs/explanation/security.md). Nothing here imports,
runs or opens what a file names. Accepted values have finite numbers of at most 64 bits, whole
Unicode, and no key twice. They are nested at most 200 deep, and within the limits of size.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ttsnap.files.settings import Json

JSON_BYTES = 64 * 2**20
PICTURE_BYTES = 2**28
TENSOR_BYTES = 2**33
PIXELS = 2**26
"""Most pixels of a picture (8192 x 8192): a small file may say that it holds thousands of
millions."""
HUGE = 2**64
Tensor: TypeAlias = NDArray[np.generic]
"""An array of a safetensors file, of any dtype and shape until its reader has checked them."""


@contextmanager
def foreign(sentence: str) -> Iterator[None]:
    """Whatever a library raises while it decodes foreign bytes, as one ValueError: "`sentence`:
    reason".

    Only for the call of the library itself: mistakes of our own code must stay visible. Which
    exceptions a decoder raises for malformed bytes is documented nowhere, and changes with
    versions.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{sentence}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an exception says, in one line of at most 300 characters; its type where it says
    nothing."""
    return printable(" ".join(str(error).split())[:300]) or type(error).__name__


def printable(text: str) -> str:
    """Text from a file, safe to print: control characters, which could steer a terminal, are shown
    as escapes."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


# --- bytes ----------------------------------------------------------------------------------------


def read_bytes(path: str | Path, most: int, what: str = "file") -> bytes:
    """The whole of a regular file. ValueError where there is none, it cannot be read, or it has
    more bytes than `most`.

    Devices and pipes, which may never end, are no regular files.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError(f"no such {what}: {path}")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > most:
        raise ValueError(f"{path} is too large: at most {most:,} bytes are read of a {what}")
    return data


# --- JSON -----------------------------------------------------------------------------------------


def read_json(
    path: str | Path, *, what: str = "file", most: int = JSON_BYTES, nan: bool = False
) -> Json:
    """The value in a JSON file. ValueError, as of `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, most, what), path, nan=nan)


def parse_json(text: str | bytes, where: object, *, nan: bool = False) -> Json:
    """The value that JSON text stands for; `where` names it in messages.

    ValueError for damage, deep nesting, repeated keys, broken Unicode, and numbers that are not
    finite or beyond 64 bits. nan: NaN and Infinity pass.
    """
    from pydantic_core import from_json

    try:
        # it bounds nesting, and refuses half a character
        from_json(text, allow_inf_nan=nan)
        value: Json = json.loads(
            text,
            parse_float=lambda digits: bounded(float(digits)),
            parse_int=lambda digits: bounded(int(digits)),
            object_pairs_hook=unique,
        )
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {reason(error)}") from None
    return value


def read_object(
    path: str | Path, *, what: str = "file", most: int = JSON_BYTES, nan: bool = False
) -> dict[str, Json]:
    """The object in a JSON file, by key. ValueError, as of `read_json`, and where the file holds
    something else."""
    return _as_object(read_json(path, what=what, most=most, nan=nan), path)


def parse_object(text: str | bytes, where: object, *, nan: bool = False) -> dict[str, Json]:
    """The object that JSON text stands for. ValueError, as of `parse_json`, and where it stands for
    something else."""
    return _as_object(parse_json(text, where, nan=nan), where)


def _as_object(value: Json, where: object) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is damaged: it must hold keys and values, got {str(value)[:60]}")
    return value


def bounded(number: float) -> float:
    """A number that is finite, a whole one of at most 64 bits. ValueError for others."""
    if math.isinf(number) if isinstance(number, float) else abs(number) >= HUGE:
        raise ValueError(f"{str(number)[:24]} is too large a number")
    return number


def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """An object of these keys and values. ValueError where a key stands twice."""
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:40]!r} stands twice in an object")
    return members


# --- pictures -------------------------------------------------------------------------------------


def picture_pixels(
    data: bytes,
    where: object,
    *,
    formats: Sequence[str] = ("PNG",),
    most: int = PIXELS,
    alpha: bool = False,
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a picture in one of these formats; alpha: (H, W, 4) where it has an alpha
    channel.

    ValueError for other formats, more pixels than `most`, or damage.

    The formats are named since for some (EPS) the imaging library starts other programs, whatever
    the file's name is.
    """
    with opened_picture(data, where, formats, most) as picture:
        return np.array(
            picture.convert("RGBA" if alpha and picture.mode in ("RGBA", "LA") else "RGB")
        )


@contextmanager
def opened_picture(
    data: bytes, where: object, formats: Sequence[str], most: int
) -> Iterator[Image.Image]:
    """A picture whose pixels are not decoded yet. ValueError for other formats, more pixels than
    `most`, or damage."""
    with foreign(f"cannot read {where} as an image"):
        with warnings.catch_warnings():  # of what is refused right below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                picture = Image.open(io.BytesIO(data), formats=list(formats))
            except UnidentifiedImageError:  # which names the object in memory
                raise ValueError(f"it is no {' or '.join(formats)}, or it is damaged") from None
        with picture:
            if picture.width * picture.height > most:
                raise ValueError(
                    f"{picture.width} x {picture.height} are more than {most:,} pixels"
                )
            yield picture


# --- tensors --------------------------------------------------------------------------------------


def read_tensors(path: str | Path, what: str = "file") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata. ValueError where there is none
    or a damaged one, and for more than TENSOR_BYTES."""
    from safetensors import safe_open

    if not Path(path).is_file():
        raise ValueError(f"no such {what}: {path}")
    # perhaps mostly holes, which take no room on the disk
    if Path(path).stat().st_size > TENSOR_BYTES:
        raise ValueError(
            f"{path} is too large: at most {TENSOR_BYTES:,} bytes are read of a {what}"
        )
    with (
        foreign(f"{path} is no {what}: it cannot be read as safetensors"),
        safe_open(path, framework="numpy") as file,
    ):
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
