"""Images of one unit of a recording as one tar of PNGs, named as webdataset names them.

Beside an image may lie its latent and the denoiser's hidden features, as float16 .npy of the same name.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttsnap.journal import sha256
from ttsnap.outputs import to_uint8

_NAME = re.compile(r"(\d{5,})-(\d+)-(\d{3,})\.(png|latent\.npy|features\.npy)")


@dataclass(frozen=True)
class Shard:
    """A tar as it was when written: its file's name, size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Shard:
        return cls(path.name, path.stat().st_size, sha256(path))


class RecordedImage(NamedTuple):
    """The decoded x0 estimate of `seed` for prompt number `prompt` at `step`: pixels (H, W, 3) uint8."""

    prompt: int
    seed: int
    step: int
    pixels: NDArray[np.uint8]


class ShardWriter:
    """Adds images to an open file as they come. The bytes depend on the images alone: no times, no owners."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, prompt: int, seed: int, step: int, image: Any, kept: Mapping[str, Any] | None = None) -> None:
        """image: (3, H, W) in [0, 1], an array or a tensor; kept: "latent" and "features", each (C, h, w)."""
        name, file = f"{prompt:05d}-{seed}-{step:03d}", io.BytesIO()
        Image.fromarray(to_uint8(image)).save(file, format="PNG")
        self._write(f"{name}.png", file)
        for kind, value in (kept or {}).items():
            file = io.BytesIO()
            on_cpu = value.float().cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)
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
    """Its images in the order of writing. ValueError where the file is missing or not what was written."""
    if not path.is_file():
        raise ValueError(f"the images {path} are missing; record again, or restore the file")
    if path.stat().st_size != shard.size or sha256(path) != shard.sha256:
        raise ValueError(f"the images {path} are damaged: size or SHA-256 differ from what was written")
    with tarfile.open(path, mode="r:") as tar:
        for entry in tar:
            match, file = _NAME.fullmatch(entry.name), tar.extractfile(entry)
            if match is None or file is None:
                raise ValueError(f"{path} holds {entry.name!r}, which is no name of a recorded image")
            if match[4] != "png":
                continue
            prompt, seed, step = (int(part) for part in match.groups()[:3])
            with Image.open(file) as picture:
                yield RecordedImage(prompt, seed, step, np.asarray(picture.convert("RGB")))
