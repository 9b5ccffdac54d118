"""Numbers that take long to compute, kept in a file as they come, from which an interrupted run
resumes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ttsnap.core.arrays import FloatArray
from ttsnap.files.run_folder import differences
from ttsnap.files.settings import Json
from ttsnap.files.writing import CHECKPOINT_SECONDS, write_bytes
from ttsnap.recordings.folder import packed, unpacked


class KeptNumbers:
    """The first `done` of so many `numbers`; the file is written from time to time, and at the end
    of a `with` block.

    path: None for no file. key: what the numbers are, as "targets". about: what they depend on.
    writes: whether this process does. ValueError for a file that is damaged, or about something
    else.
    """

    def __init__(
        self,
        path: Path | None,
        key: str,
        about: Mapping[str, Json],
        count: int,
        *,
        writes: bool = True,
    ) -> None:
        self.numbers = np.zeros(count)
        self._path = path if writes else None
        self._key = key
        self._about = about
        kept: FloatArray = np.empty(0)
        there = dict(about)
        if path is not None and path.exists():
            try:
                kept, there = unpacked(path, key, f"file of {key}")
                if kept.ndim != 1 or len(kept) > count or not np.isfinite(kept).all():
                    raise ValueError(
                        f"{path} is damaged: it should hold at most {count} finite numbers"
                    )
            except ValueError as error:
                raise ValueError(f"{error}; remove it, and the {key} are computed again") from None
        if mismatches := differences(there, dict(about)):
            raise ValueError(
                f"{path} holds {key} of other data: {'; '.join(mismatches)}; remove it, or write to"
                " another place"
            )
        self.numbers[: len(kept)] = kept
        self.done = self._saved = len(kept)
        self._at = time.monotonic()

    def add(self, part: FloatArray) -> None:
        """Those that follow."""
        self.numbers[self.done : self.done + len(part)] = part
        self.done += len(part)
        if time.monotonic() - self._at >= CHECKPOINT_SECONDS:
            self.__exit__()

    def __enter__(self) -> KeptNumbers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None and self.done > self._saved:
            kept = self.numbers[: self.done]
            write_bytes(self._path, packed(kept, self._key, self._about))
        self._saved = self.done
        self._at = time.monotonic()
