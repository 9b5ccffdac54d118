"""Tars of recorded images that somebody else may have packed."""

from __future__ import annotations

import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttsnap.distill import data
from ttsnap.recordings.shards import Shard, ShardWriter, read_shard

NAME = "00000-7-002.png"


def packed(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def png(width: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, width)).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("kept", ["latent", "features"])  # the latter by earlier versions
def test_what_was_written_is_read(kept: str, tmp_path: Path) -> None:
    path = tmp_path / "unit-00000.tar"
    image = np.random.default_rng(0).random((3, 4, 5))
    with path.open("wb") as file:
        writer = ShardWriter(file)
        writer.add(0, 7, 2, image, {kept: np.zeros((2, 2, 2))})
        writer.close()
    (found,) = read_shard(path, Shard.of(path))
    assert found[:3] == (0, 7, 2)
    assert np.array_equal(found.pixels, (image.transpose(1, 2, 0) * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        (NAME, b"no picture", tarfile.REGTYPE, f"cannot read {NAME} in .* as an image"),
        (NAME, b"", tarfile.SYMTYPE, f"cannot read {NAME} in .* as an image"),
        (NAME, b"", tarfile.LNKTYPE, f"cannot read {NAME} in .* as an image"),
        (NAME, b"", tarfile.FIFOTYPE, f"cannot read {NAME} in .* as an image"),
        (NAME, png(9000), tarfile.REGTYPE, "9000 x 9000 are more than"),
        ("../../x.png", png(2), tarfile.REGTYPE, "no name of a recorded image"),
        (f"{'9' * 5000}-1-002.png", png(2), tarfile.REGTYPE, "no name of a recorded image"),
    ],
)
def test_hostile_entries_are_refused(name: str, content: bytes, kind: bytes, message: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(2))
    path = packed(tmp_path / "unit-00000.tar", (entry(name, kind, str(secret)), content))
    with pytest.raises(ValueError, match=message):
        list(read_shard(path, Shard.of(path)))


def test_entries_of_negative_size_do_not_loop(tmp_path: Path) -> None:
    path = packed(tmp_path / "unit-00000.tar", (entry(NAME), png(2)))
    whole = bytearray(path.read_bytes())
    whole[124:136] = b"-0000001000\0"
    path.write_bytes(whole)
    said: list[str] = []

    def read() -> None:
        with pytest.raises(ValueError, match="are damaged: no") as caught:
            list(data._entries(path))
        said.append(str(caught.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert said
