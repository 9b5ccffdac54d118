"""Scores that a judge gave before, on disk, by the content of what it was asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from ttsnap.files.reading import read_object
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_json

BYTES = 1000
"""Most bytes of an entry."""


def key_of(asked: Mapping[str, Json], server: str) -> str:
    """Of a request to a server: the SHA-256 of all that is asked, which is images, text, model and template."""
    return hashlib.sha256(json.dumps([server, asked], sort_keys=True).encode()).hexdigest()


class Cache:
    """At most `most` scores in a folder, a small file for each; the ones that were written longest ago go first.

    Several processes may share a folder. What cannot be read or written is as if it were not there: a cache must not
    cost a score.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._files: int | None = None

    def get(self, key: str, low: float, high: float) -> float | None:
        """The score under a key, if there is one between `low` and `high`."""
        with contextlib.suppress(ValueError, OSError):
            score = read_object(self._path(key), most=BYTES).get("score")
            if isinstance(score, int | float) and not isinstance(score, bool) and low <= score <= high:
                return float(score)
        return None

    def put(self, key: str, score: float) -> None:
        """Remember a finite score."""
        assert math.isfinite(score)
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"score": score})
            if self._files is None:
                self._files = len(self._entries())
            else:
                self._files += 1
            if self._files > self.most:
                self._shorten()

    def _shorten(self) -> None:
        """Remove the oldest entries, and a tenth more, so that it is not done again at once."""
        entries = sorted(self._entries(), key=_written)
        kept = self.most - self.most // 10
        for path in entries[: len(entries) - kept]:
            with contextlib.suppress(OSError):
                path.unlink()
        self._files = min(len(entries), kept)

    def _entries(self) -> list[Path]:
        """Entries alone: the folder may hold files of others, and links to where they are."""
        folders = [folder for folder in self.folder.glob(2 * "[0-9a-f]") if not folder.is_symlink()]
        paths = [path for folder in folders for path in folder.glob(f"{folder.name}{62 * '[0-9a-f]'}.json")]
        return [path for path in paths if path.is_symlink() or path.is_file()]

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _written(path: Path) -> float:
    """When; long ago where another process has removed it since."""
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0
