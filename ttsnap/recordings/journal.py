"""Files that survive being killed at any byte: an append-only journal, and files that appear whole or not at all."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, TypeVar

from ttsnap.files.writing import _sync_folder

T = TypeVar("T")


logger = logging.getLogger(__name__)


MOST_BYTES = 2**32
"""Of a journal, which is kept in memory; a file that is mostly holes may say that it has any number."""
_LENGTH = struct.Struct("<I")


_FRAME = struct.Struct("<II")
"""Before every payload: its length in bytes, and a CRC-32 of that length's four bytes and the payload."""


def frame(payload: bytes) -> bytes:
    """One record as it lies in the file."""
    return _FRAME.pack(len(payload), _check(payload)) + payload


def split(data: bytes) -> tuple[list[bytes], int]:
    """The payloads of the whole records that `data` starts with, and where the last of them ends."""
    return _records(io.BytesIO(data), len(data))


def read_journal(path: Path) -> list[bytes]:
    """The payloads of a journal's whole records; none where there is no journal. Nothing is changed.

    ValueError for what is no file, or a larger one than is read.
    """
    size = _size(path)
    if size is None:
        return []
    with path.open("rb") as file:
        return _records(file, size)[0]


def _records(file: BinaryIO, size: int) -> tuple[list[bytes], int]:
    """As `split`, of a file of so many bytes, read record by record.

    The length is part of the checksum, so that a stretch of zeros, as a crash may leave, is no record.
    """
    payloads, at = [], 0
    while len(head := file.read(_FRAME.size)) == _FRAME.size:
        length, check = _FRAME.unpack(head)
        if at + _FRAME.size + length > size:
            break
        payload = file.read(length)
        if len(payload) < length or _check(payload) != check:
            break
        payloads.append(payload)
        at += _FRAME.size + length
    return payloads, at


def _size(path: Path) -> int | None:
    """How many bytes a journal has; None where there is none. ValueError as of `read_journal`."""
    if not path.exists():
        return None
    if not path.is_file():  # a pipe is never at its end
        raise ValueError(f"{path} is no file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} is too large: at most {MOST_BYTES:,} bytes are read of a journal")
    return size


def _check(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))


_NO_LINK = os.O_NOFOLLOW if os.name == "posix" else 0


class Journal:
    """An append-only file of checksummed records. Lock its folder (lock.py) before opening it: it has one writer.

    Opening keeps the whole records (`records`) and cuts off what follows them: the torn end of a process that was
    killed, or everything from the first damaged byte on. ValueError for a link, since the file that it leads to would
    be cut, and as of `read_journal`.
    """

    def __init__(self, path: Path) -> None:
        size = _size(path)
        if path.is_symlink():
            raise ValueError(f"{path} is a link to another file, which would be written to; remove it")
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666), "r+b")
        try:
            if size is None:
                _sync_folder(path.parent)
            self.records, end = _records(self._file, size or 0)
            if size is not None and end < size:
                logger.warning("%s: dropped %d bytes after its last whole record", path, size - end)
                self._file.truncate(end)
                os.fsync(self._file.fileno())
            self._file.seek(end)
        except BaseException:
            self._file.close()
            raise

    def append(self, payload: bytes) -> None:
        """Add a record; on return it is on the disk."""
        self._file.write(frame(payload))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(payload)

    def close(self) -> None:
        """Close the file; all records are on the disk already."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
