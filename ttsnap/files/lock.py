"""One process at a time in a folder: a lock that the system takes back when its holder ends, however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
"""The file in the folder that is locked. It holds who has it, and is removed with the lock; a process that was killed
leaves it behind unlocked, which keeps no one out."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes, and other threads of this one, out of `folder`; it is made where it is missing.

    Whatever was found out about the folder before is to be checked again inside, as another process may have been
    there in between. Raises ValueError that names the holder where there is one, and for a lock that is a link; OSError
    where nothing can be written.
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
            f"another process is writing to {folder}{_holder(path)}; wait for it, or choose another folder"
        ) from None
    try:
        with contextlib.suppress(OSError):  # a help to the reader only; Windows lets no one write to a locked file
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # still locked: whoever waits for this file finds it gone, and makes a new one
        lock.release()


def _holder(path: Path) -> str:
    """What the holder wrote about itself, in brackets; nothing where that cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(200).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return f" ({text})" if text.isprintable() and text else ""
