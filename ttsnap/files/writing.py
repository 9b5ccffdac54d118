"""Files that appear whole or not at all, and the checksum that says whether one is still as it was written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from ttsnap.files.settings import Json

T = TypeVar("T")


def write_whole(path: Path, save: Callable[[BinaryIO], T]) -> T:
    """Let `save` write to a temporary file beside `path`, and give it that name once it is on the disk.

    Returns what `save` returned. Where it raises, no file is left. OSError also where another process has begun to
    write the same file since: that one goes on.
    """
    temporary = part_of(path)
    temporary.unlink(missing_ok=True)  # of a process that was killed, or a link, which leads to a file elsewhere
    ours = False
    try:
        with temporary.open("xb") as file:
            try:
                value = save(file)
                file.flush()
                os.fsync(file.fileno())
            finally:
                ours = temporary.exists() and os.path.samestat(os.fstat(file.fileno()), temporary.stat())
            if not ours:
                raise OSError(errno.EBUSY, "another process writes the same file", str(path))
        os.replace(temporary, path)
        _sync_folder(path.parent)
        return value
    finally:
        if ours:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of this text in UTF-8, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Json) -> None:
    """Write a file of this value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def part_of(path: Path) -> Path:
    """The temporary name of a file that is being written."""
    return path.with_name(f".{path.name}.part")


def sha256(path: Path) -> str:
    """Of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """A new name is safe only when its folder is on the disk, too; some systems do not offer that."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(fd)
        os.close(fd)
