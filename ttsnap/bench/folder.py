"""The folder of a benchmark, begun or resumed: its images, and what their searches found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ttsnap.bench.layout import BENCH, FOUND, found_path, image_path
from ttsnap.files.run_folder import RunFolder, json_folder, read_unit
from ttsnap.files.settings import Json, to_json
from ttsnap.files.writing import write_json


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
    """The images in a folder that `open_bench` opened."""

    def __init__(self, folder: Path) -> None:
        """ValueError where the folder is damaged."""
        self.folder = folder
        again = "the image is made again"
        records = [read_unit(Found, path, again) for path in sorted(folder.glob(FOUND))]
        self._found = {found.key: found for found in records}

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
            image = image_path(self.folder, found.arm, found.index, found.repeat)
            write_json(found_path(image), to_json(found))
            self._found[found.key] = found


def run_folder(folder: Path, settings: Mapping[str, Json]) -> RunFolder:
    """The folder of a benchmark. settings: what must be the same to resume it."""
    return json_folder(folder, BENCH, "benchmark", settings)


@contextmanager
def open_bench(folder: Path, settings: Mapping[str, Json]) -> Iterator[OpenBench]:
    """A benchmark's folder, begun or resumed; open for one process at a time.

    ValueError where the folder holds other files or a benchmark with other settings, is in use, or
    is damaged; OSError where it cannot be written to.
    """
    with run_folder(folder, settings).opened():
        yield OpenBench(folder)
