"""Files that survive being killed at any byte: an append-only journal, and files that appear whole or not at all."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, TypeVar

from ttsnap.files.writing import _sync_folder

T = TypeVar("T")


logger = logging.getLogger(__name__)


_LENGTH = struct.Struct("<I")


_FRAME = struct.Struct("<II")
"""Before every payload: its length in bytes, and a CRC-32 of that length's four bytes and the payload."""


def frame(payload: bytes) -> bytes:
    """One record as it lies in the file."""
    return _FRAME.pack(len(payload), _check(payload)) + payload


def split(data: bytes) -> tuple[list[bytes], int]:
    """The payloads of the whole records that `data` starts with, and where the last of them ends.

    The length is part of the checksum, so that a stretch of zeros, as a crash may leave, is no record.
    """
    payloads, at = [], 0
    while at + _FRAME.size <= len(data):
        length, check = _FRAME.unpack_from(data, at)
        payload = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(payload) < length or _check(payload) != check:
            break
        payloads.append(payload)
        at += _FRAME.size + length
    return payloads, at


def _check(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))


class Journal:
    """An append-only file of checksummed records. Lock its folder (lock.py) before opening it: it has one writer.

    Opening keeps the whole records (`records`) and cuts off what follows them: the torn end of a process that was
    killed, or everything from the first damaged byte on.
    """

    def __init__(self, path: Path) -> None:
        new = not path.exists()
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            if new:
                _sync_folder(path.parent)
            data = self._file.read()
            self.records, end = split(data)
            if end < len(data):
                logger.warning("%s: dropped %d bytes after its last whole record", path, len(data) - end)
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
