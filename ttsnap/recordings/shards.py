"""Images of one unit of a recording as one tar of PNGs, named as webdataset names them.

A latent is a float16 .npy of the same name, with its image or alone.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttsnap.files import reading as files
from ttsnap.files.settings import Json, build
from ttsnap.files.writing import sha256
from ttsnap.results.media import Pixels, to_uint8

NAME = re.compile(r"([0-9]{5,9})-([0-9]{1,19})-([0-9]{3,9})\.(png|latent\.npy)")
"""Prompt, seed, step and extension of a file in a tar; the most digits of each keep the numbers
within 64 bits."""
_SHARD = re.compile(r"unit-[0-9]{5,9}\.tar")


@dataclass(frozen=True)
class Shard:
    """A tar as written: the file's name, size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Shard:
        return cls(path.name, path.stat().st_size, sha256(path))

    @classmethod
    def read(cls, data: Json, where: object) -> Shard:
        """A shard from JSON that anyone may have written. ValueError unless it names a tar of a
        recording."""
        try:
            shard = build(cls, data)
        except ValueError as error:
            raise ValueError(f"{where} is damaged: in a shard, {error}") from None
        if not _SHARD.fullmatch(shard.name):
            raise ValueError(
                f"{where} names {shard.name[:60]!r}, which is no file of a recording"
                " (unit-00000.tar)"
            )
        return shard


def read_shards(data: Json, where: object) -> list[Shard]:
    """The shards of a recording's header. ValueError as of `Shard.read`, and for what is no
    list."""
    if not isinstance(data, list):
        raise ValueError(f"{where} is damaged: its shards are no list")
    return [Shard.read(shard, where) for shard in data]


class RecordedImage(NamedTuple):
    """The decoded x0 estimate of `seed` for prompt number `prompt` at `step`: pixels (H, W, 3)
    uint8."""

    prompt: int
    seed: int
    step: int
    pixels: NDArray[np.uint8]


class ShardWriter:
    """Adds images to an open file. The bytes depend on the images alone: no times, no owners."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(
        self,
        prompt: int,
        seed: int,
        step: int,
        image: Pixels | None,
        kept: Mapping[str, Pixels] | None = None,
    ) -> None:
        """image: (3, H, W) in [0, 1], an array or a tensor; kept: "latent", (C, h, w)."""
        name = f"{prompt:05d}-{seed}-{step:03d}"
        if image is not None:
            file = io.BytesIO()
            Image.fromarray(to_uint8(image)).save(file, format="PNG")
            self._write(f"{name}.png", file)
        for kind, value in (kept or {}).items():
            file = io.BytesIO()
            on_cpu = value if isinstance(value, np.ndarray) else value.float().cpu().numpy()
            np.save(file, on_cpu.astype(np.float16), allow_pickle=False)
            self._write(f"{name}.{kind}.npy", file)

    def _write(self, name: str, file: io.BytesIO) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = file.tell()
        file.seek(0)
        self._tar.addfile(entry, file)

    def close(self) -> None:
        """Write the tar's end; the file stays open."""
        self._tar.close()


def read_shard(path: Path, shard: Shard) -> Iterator[RecordedImage]:
    """The images of a tar, in the order of writing. ValueError where the file is missing or not as
    written."""
    if not path.is_file():
        raise ValueError(f"the images {path} are missing; record again, or restore the file")
    if path.stat().st_size != shard.size or sha256(path) != shard.sha256:
        raise ValueError(
            f"the images {path} are damaged: size or SHA-256 differ from what was written"
        )
    for entry, data in _entries(path):
        match = NAME.fullmatch(entry)
        if match is None:
            raise ValueError(f"{path} holds {entry[:60]!r}, which is no name of a recorded image")
        if match[4] == "png":
            prompt, seed, step = (int(part) for part in match.groups()[:3])
            yield RecordedImage(
                prompt, seed, step, files.picture_pixels(data, f"{entry} in {path}")
            )


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a tar's entries. Links and devices have no content."""
    with files.foreign(f"the images {path} are damaged"), tarfile.open(path, mode="r:") as tar:
        for entry in tar:
            file = tar.extractfile(entry) if entry.isreg() else None
            yield entry.name, b"" if file is None else file.read(files.PICTURE_BYTES)
