"""Recordings on disk: a folder that can be resumed after any interruption (docs/recordings.md).

recording.json   the settings (header.Header), written first
unit-00000.safetensors   the scores of a finished unit of work, until all units are there
images/          with `images` or `latents`, one tar per unit
scores.safetensors   the scores (P, S, C, R) float64 of the K+1 steps and further looks, written last, whole or not
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ttsnap.core.arrays import FloatArray
from ttsnap.core.price import Price
from ttsnap.files import reading as files
from ttsnap.files.reading import Tensor
from ttsnap.files.run_folder import RunFolder, differences, digest
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_bytes
from ttsnap.recordings.header import Header, Unit
from ttsnap.recordings.replay import PUBLISHED, Recording, recording_of
from ttsnap.recordings.shards import RecordedImage, Shard, read_shard, read_shards

RECORDING = "recording.json"
SCORES = "scores.safetensors"
IMAGES = "images"
UNIT_FILES = "unit-*.safetensors"
"""Their names, as a pattern (Unit.file)."""
HEADER_CRC = "header_crc32"
"""Key of a safetensors header for the checksum of its other keys."""


def load_recording(
    path: str | Path, *, scores: str = "noise_aware", price: Price = PUBLISHED
) -> Recording:
    """A finished recording: its folder, its scores.safetensors, or a file of published reward
    tensors.

    Reward tensors are `base` and `noise_aware`, each (P, S, K). Column k is the reward of the x0
    estimate after call k + 1, the last column that of the finished image. Their grid is linspace(1,
    0, K + 1), their prompts "prompt 0", "prompt 1", ...

    scores: the tensor that estimates come from. nan in `noise_aware` is replaced by `base`; the
    last column is always `base`. price: what a unit cost there. A recording of ttsnap uses neither.

    Raises ValueError that says what is wrong: no such file, unfinished, damaged, another layout.
    """
    path = Path(path)
    if path.is_dir():
        _require_finished(path)
        path = path / SCORES
    tensors, metadata = files.read_tensors(path, "recording")
    if "recording" in metadata:
        header, values, _ = _check_scores(path, tensors, metadata)
        if header.apart:
            raise ValueError(
                f"{path} holds latents without images, to learn from, and its prompts share no"
                " seeds; record without --latents, or with --images, too"
            )
        return header.recording(values)
    return recording_of(path, tensors, scores, price)


def save_recording(recording: Recording, folder: str | Path) -> None:
    """Write a recording that is in memory. ValueError where the folder holds other files, or
    another recording."""
    with open_recording(Path(folder), Header.of(recording)) as open_folder:
        for unit in open_folder.missing():
            open_folder.add(unit, recording.columns[unit.rows], None)
        written = open_folder.finish()
    if not np.array_equal(written.columns, recording.columns, equal_nan=True):
        raise ValueError(
            f"{folder} holds a recording with the same settings and other scores; choose another"
            " folder"
        )


def read_images(folder: str | Path) -> Iterator[RecordedImage]:
    """(prompt index, seed, step, pixels) of every scored estimate, each file checked before it is
    read.

    Raises ValueError where the recording is unfinished, has no images, or a file is missing or
    damaged.
    """
    for shard in load_shards(folder)[1]:
        yield from read_shard(Path(folder) / IMAGES / shard.name, shard)


def load_shards(folder: str | Path) -> tuple[Header, list[Shard]]:
    """The settings of a finished recording, and the tars of its images and latents.

    ValueError as of `load_recording`, and where it has none.
    """
    folder = Path(folder)
    _require_finished(folder)
    path = folder / SCORES
    header, scores, shards = _check_scores(path, *files.read_tensors(path, "recording"))
    header.recording(scores)  # every check of it
    if not (header.images or header.extras):
        raise ValueError(
            f"{folder} was recorded without images; record into another folder with --images"
        )
    return header, shards


def progress(folder: str | Path) -> tuple[int, int]:
    """(finished units of work, all units) of a recording's folder. Nothing is changed."""
    folder = Path(folder)
    header = _read_header(folder)
    units = header.units()
    if (folder / SCORES).exists():
        return len(units), len(units)
    return len(_units_of(folder, header)), len(units)


def begun_block(folder: str | Path) -> tuple[int, int] | None:
    """Prompts and seeds of a unit in the recording that a folder holds; None where there is none
    yet."""
    return _read_header(Path(folder)).block if (Path(folder) / RECORDING).exists() else None


def shard_path(folder: Path, unit: Unit) -> Path:
    """The tar of a unit's images."""
    return folder / IMAGES / f"unit-{unit.index:05d}.tar"


def run_folder(folder: Path, settings: Mapping[str, Json], text: str = "") -> RunFolder:
    """The folder of a recording, whose header must have these keys and values. text: the header."""

    def differing() -> list[str]:
        there = _read_header(folder).to_json()
        return differences({key: there.get(key) for key in settings}, dict(settings))

    return RunFolder(folder, RECORDING, "recording", differing, text)


@contextmanager
def open_recording(folder: Path, header: Header) -> Iterator[OpenRecording]:
    """A folder that a recording is written to, begun or resumed; open for one process at a time.

    ValueError where the folder holds other files, a recording with other settings, or is in use.
    """
    settings = header.to_json()
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    run = run_folder(folder, settings, text)
    finished = (folder / SCORES).exists()
    run.check()
    with nullcontext() if finished else run.opened(renew=False):
        yield OpenRecording(folder, header)


class OpenRecording:
    """The units of a recording in a folder that `open_recording` opened."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder = folder
        self.header = header
        self._digest = _digest(folder)
        if self.finished:
            self._remove_units()  # of a process that was killed just before this
        self._done = _units_of(folder, header)

    @property
    def finished(self) -> bool:
        """Whether all scores are there."""
        return (self.folder / SCORES).exists()

    def _has(self, shard: Shard) -> bool:
        """Whether a shard still lies in the folder."""
        path = self.folder / IMAGES / shard.name
        return path.is_file() and path.stat().st_size == shard.size

    def missing(self) -> list[Unit]:
        """The units that are still to be recorded, in order. A unit whose shard is gone is recorded
        again."""
        if self.finished:
            return []
        done = {
            index for index, (_, shard) in self._done.items() if shard is None or self._has(shard)
        }
        return [unit for unit in self.header.units() if unit.index not in done]

    def add(self, unit: Unit, scores: FloatArray, shard: Shard | None) -> None:
        """Keep a unit's `scores` (prompts, seeds, C, R), and the shard of its images where images
        are kept.

        ValueError where the shard does not lie in the folder, whole: its maker writes to another
        disk.
        """
        if shard is not None and not self._has(shard):
            raise ValueError(
                f"the images of unit {unit.index} were made, but"
                f" {self.folder / IMAGES / shard.name} is not here: all machines must see the same"
                " folder, on a file system that they share"
            )
        about = {
            "header": self._digest,
            "shard": None if shard is None else dataclasses.asdict(shard),
        }
        write_bytes(self.folder / unit.file, packed(scores, "unit", about))
        self._done[unit.index] = scores, shard

    def finish(self) -> Recording:
        """Write the scores and remove the units' files. ValueError when units are missing."""
        if self.finished:
            path = self.folder / SCORES
            _, scores, _ = _check_scores(path, *files.read_tensors(path, "recording"))
            return self.header.recording(scores)
        if missing := self.missing():
            raise ValueError(
                f"{len(missing)} of {len(self.header.units())} units are missing in {self.folder}"
            )
        scores = np.full(self.header.shape, np.nan)
        for unit in self.header.units():
            scores[unit.rows] = self._done[unit.index][0]
        shards = [
            dataclasses.asdict(shard)
            for _, (_, shard) in sorted(self._done.items())
            if shard is not None
        ]
        about = {**self.header.to_json(), "shards": shards}
        write_bytes(self.folder / SCORES, packed(scores, "recording", about))
        self._remove_units()
        return self.header.recording(scores)

    def _remove_units(self) -> None:
        for path in list(self.folder.glob(UNIT_FILES)):
            path.unlink()


def packed(scores: FloatArray, key: str, about: Mapping[str, Json]) -> bytes:
    """A safetensors file of scores, with JSON about them and checksums of both under one key of its
    header."""
    # One key, since safetensors writes several in any order and the bytes should be the same every
    # time.
    about = {**about, "crc32": zlib.crc32(scores.tobytes())}
    return save({"scores": scores}, {key: json.dumps({**about, HEADER_CRC: checksum(about)})})


def checksum(about: Mapping[str, Json]) -> int:
    """CRC-32 of JSON values, whatever their order."""
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def unpacked(path: Path, key: str, what: str) -> tuple[FloatArray, dict[str, Json]]:
    """The scores and the JSON of a file that `packed` made. ValueError for another file, and for a
    damaged one."""
    return _unpacked(path, key, *files.read_tensors(path, what))


def _unpacked(
    path: Path, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[FloatArray, dict[str, Json]]:
    about = files.parse_object(metadata.get(key, ""), path)
    if about.pop(HEADER_CRC, None) != checksum(about):
        raise ValueError(
            f"{path} is damaged: its header does not have the checksum with which it was written"
        )
    scores = tensors.get("scores")
    if scores is None or scores.dtype != np.float64:
        raise ValueError(f"{path} is damaged: it should hold scores, float64")
    if zlib.crc32(scores.tobytes()) != about.pop("crc32", None):
        raise ValueError(
            f"{path} is damaged: the scores do not have the checksum with which they were written"
        )
    return np.asarray(scores, np.float64), about


def _units_of(folder: Path, header: Header) -> dict[int, tuple[FloatArray, Shard | None]]:
    """The scores and the shard of each unit that is in a folder, by the unit's index.

    ValueError for a damaged file, and for one of other settings.
    """
    names = {path.name for path in folder.glob(UNIT_FILES)}
    if not names:
        return {}
    settings = _digest(folder)
    units = [unit for unit in header.units() if unit.file in names]
    return {unit.index: _read_unit(folder / unit.file, unit, header, settings) for unit in units}


def _digest(folder: Path) -> str:
    """SHA-256 of the settings in a folder."""
    return digest(files.read_object(folder / RECORDING))


def _read_unit(
    path: Path, unit: Unit, header: Header, settings: str
) -> tuple[FloatArray, Shard | None]:
    try:
        scores, about = unpacked(path, "unit", "unit of a recording")
        if about.get("header") != settings:
            raise ValueError(f"{path} was recorded with other settings than {RECORDING} holds")
        if scores.shape != (shape := (len(unit.prompts), len(unit.seeds), *header.shape[2:])):
            raise ValueError(
                f"{path} is damaged: it should hold scores of shape {shape}, not {scores.shape}"
            )
        return scores, None if about.get("shard") is None else Shard.read(about["shard"], path)
    except ValueError as error:
        raise ValueError(
            f"{error}. Put back the file that was written, or remove it to record the unit again"
        ) from None


def _read_header(folder: Path) -> Header:
    where = folder / RECORDING
    try:
        text = files.read_bytes(where, files.JSON_BYTES).decode()
    except ValueError:
        raise ValueError(f"{folder} is no recording: it has no readable {RECORDING}") from None
    return Header.from_json(files.parse_object(text, where), where)


def _require_finished(folder: Path) -> None:
    if not (folder / SCORES).exists():
        there, units = progress(folder)
        raise ValueError(
            f"the recording in {folder} is unfinished: {there} of {units} units of work are there "
            f"({there / units:.0%}); run the same command again to resume"
        )


def _check_scores(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Header, FloatArray, list[Shard]]:
    """Header, scores and shards of a scores.safetensors. ValueError for a wrong checksum."""
    scores, about = _unpacked(path, "recording", tensors, metadata)
    shards = read_shards(about.pop("shards", []), path)
    header = Header.from_json(about, path)
    if scores.shape != header.shape:
        raise ValueError(
            f"{path} is damaged: it should hold scores of shape {header.shape}, not {scores.shape}"
        )
    return header, scores, shards
