"""The folder of a benchmark, begun or resumed: its images, and what their searches found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from ttsnap.bench.layout import BENCH, FOUND, found_path, image_path
from ttsnap.files.reading import read_object
from ttsnap.files.settings import Json, build, to_json
from ttsnap.files.writing import locked, write_json
from ttsnap.recordings.header import differences
from ttsnap.results.folders import check_same


@dataclass(frozen=True)
class Found:
    """One image, and what its search found."""

    arm: str
    """The name of the algorithm's folder."""
    repeat: int
    index: int
    """The number of the prompt in its set."""
    image_bytes: int
    """The size of the PNG. A damaged one has another."""
    seed: int
    """The seed of the winner."""
    reward: float | None
    """The number that the search raised; None where a reward failed."""
    scores: Mapping[str, float | None]
    """Scores by reward, None where one failed."""
    metrics: Mapping[str, float | None]
    """Scores that are only reported, likewise."""
    spent: Mapping[str, Json]
    """What the search took, as of `Spent.to_json`."""
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, int, int]:
        """Which image of the benchmark this is."""
        return self.arm, self.repeat, self.index


class OpenBench:
    """A benchmark's folder, open for one process at a time."""

    def __init__(self, folder: Path, settings: Mapping[str, Json]) -> None:
        """settings: what must be the same to resume the benchmark.

        ValueError where the folder holds other files or a benchmark with other settings, is in use,
        or is damaged; OSError where it cannot be written to.
        """
        check_folder(folder, settings)
        self.folder = folder
        with ExitStack() as held:
            held.enter_context(locked(folder))
            check_folder(folder, settings)  # again: another process may have begun here just before
            if not (folder / BENCH).exists():
                write_json(folder / BENCH, settings)
            records = [build(Found, read_object(path)) for path in sorted(folder.glob(FOUND))]
            self._found = {found.key: found for found in records}
            self._held = held.pop_all()

    @property
    def found(self) -> list[Found]:
        """All images that were made."""
        return list(self._found.values())

    def has(self, arm: str, repeat: int, index: int) -> bool:
        """Whether an image was made and still lies there, whole."""
        found = self._found.get((arm, repeat, index))
        path = image_path(self.folder, arm, index, repeat)
        return found is not None and path.is_file() and path.stat().st_size == found.image_bytes

    def add(self, images: Sequence[Found]) -> None:
        """Note images that lie in the folder. They are not made again, even if the process is
        killed next."""
        for found in images:
            write_json(
                found_path(image_path(self.folder, found.arm, found.index, found.repeat)),
                to_json(found),
            )
            self._found[found.key] = found

    def __enter__(self) -> OpenBench:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the folder. Without any image it is removed, and does not refuse other settings."""
        if not self._found:
            (self.folder / BENCH).unlink(missing_ok=True)
        self._held.close()
        if not self._found:
            with suppress(OSError):  # it was there before, or something else is in it
                self.folder.rmdir()


def check_folder(folder: Path, settings: Mapping[str, Json]) -> None:
    """ValueError unless a folder is free for a benchmark, or holds one with these settings."""

    def differing() -> list[str]:
        return differences(read_object(folder / BENCH), json.loads(json.dumps(settings)))

    check_same(folder, BENCH, differing, "benchmark")
