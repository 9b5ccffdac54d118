"""Files that appear whole or not at all, their checksums, locks of folders for one writing process,
and tables."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from filelock import FileLock, Timeout

from ttsnap.files.settings import Json

T = TypeVar("T")
CHECKPOINT_SECONDS = 30.0
"""Between checkpoints, so that who is killed loses less than a minute of work, that of writing
included."""
LOCK = ".lock"
"""The file that is locked. It names the holder, and is removed with the lock. A process that was
killed leaves the file unlocked, which keeps no one out."""


def write_whole(path: Path, save: Callable[[BinaryIO], T]) -> T:
    """Let `save` write to a temporary file in the same folder, and rename it to `path` once it is
    synced.

    Returns what `save` returned. Where `save` raises, no file is left. OSError also where another
    process has begun to write the same file since, which may finish.
    """
    temporary = part_of(path)
    # of a process that was killed, or a link, which leads to a file elsewhere
    temporary.unlink(missing_ok=True)
    ours = False
    try:
        with temporary.open("xb") as file:
            try:
                value = save(file)
                file.flush()
                os.fsync(file.fileno())
            finally:
                ours = temporary.exists() and os.path.samestat(
                    os.fstat(file.fileno()), temporary.stat()
                )
            if not ours:
                raise OSError(errno.EBUSY, "another process writes the same file", str(path))
        os.replace(temporary, path)
        sync_names(path.parent)
        return value
    finally:
        if ours:
            temporary.unlink(missing_ok=True)


def sync_names(folder: Path) -> None:
    """See that the names in a folder are on the disk, where the system offers that."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(opened)
        os.close(opened)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file of these bytes, whole or not at all."""
    write_whole(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write a file of this text in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Json) -> None:
    """Write a file of this value as indented JSON, whole or not at all."""
    write_text(path, as_json(value))


def as_json(value: Json) -> str:
    """This value as indented JSON."""
    return json.dumps(value, indent=1) + "\n"


def part_of(path: Path) -> Path:
    """The temporary name of a file that is being written."""
    return path.with_name(f".{path.name}.part")


def sha256(path: Path) -> str:
    """Of the file's bytes, in hexadecimal. ValueError where there is no regular file: pipes may
    never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"no such file: {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes, and other threads of this one, out of `folder`; it is made where it is
    missing.

    Check again inside what you know of the folder: another process may have been there just before.
    Raises ValueError that names the holder where there is one, and for a lock that is a link;
    OSError where nothing can be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    if path.is_symlink():
        raise ValueError(f"{path} is a link to another file, which would be written to; remove it")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is writing to {folder}{_holder(path)}; wait for it, or choose another"
            " folder"
        ) from None
    try:
        # a help to the reader only; Windows lets no one write to a locked file
        with contextlib.suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            # still locked: whoever waits for this file finds it gone, and makes a new one
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    """What the holder wrote about itself, in brackets; nothing where that cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(200).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return f" ({text})" if text.isprintable() and text else ""


def markdown(
    head: Sequence[str], rows: Iterable[Sequence[object]], left: Collection[int] = (0,)
) -> str:
    """A Markdown table whose columns are padded: those in `left` are aligned to the left, others to
    the right."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    columns = enumerate(zip(*cells, strict=True))
    # a rule has a dash
    widths = [max(1 if i in left else 2, *map(len, column)) for i, column in columns]
    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    sides = [str.ljust if i in left else str.rjust for i in range(len(widths))]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [side(cell, w) for side, cell, w in zip(sides, row, widths, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table whole or not at all."""
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    write_text(path, text.getvalue())
