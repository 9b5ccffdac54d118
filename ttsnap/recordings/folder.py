"""Recordings on disk: a folder that can be gone on with after any interruption (docs/recordings.md).

recording.json   the settings (header.Header), written first
journal.bin      a digest of the settings, and a checksummed record per finished unit of work, until all are there
images/          where asked for, one tar of PNGs per unit
scores.safetensors   the scores (P, S, C, R) float64 of the K+1 steps and further looks, written last, whole or not
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ttsnap.core.arrays import FloatArray
from ttsnap.core.price import Price
from ttsnap.files import reading as files
from ttsnap.files.lock import locked
from ttsnap.files.reading import Tensor
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_text, write_whole
from ttsnap.recordings.header import HEADER_CRC, Header, Unit, checksum, differences
from ttsnap.recordings.journal import Journal, read_journal
from ttsnap.recordings.replay import PUBLISHED, Recording, recording_of
from ttsnap.recordings.shards import RecordedImage, Shard, read_shard, read_shards
from ttsnap.results.folders import check_same

RECORDING, JOURNAL, SCORES, IMAGES = "recording.json", "journal.bin", "scores.safetensors", "images"


def load_recording(path: str | Path, *, scores: str = "noise_aware", price: Price = PUBLISHED) -> Recording:
    """A finished recording: its folder, its scores.safetensors, or a file of published reward tensors.

    Reward tensors are `base` and `noise_aware`, each (P, S, K): column k the reward of the x0 estimate after call
    k + 1, the last column that of the finished image. `scores` says which of the two the estimates come from (nan in
    `noise_aware` is replaced by `base`; the last column is always `base`), `price` what a unit cost there; neither is
    used for a recording of ttsnap. The grid is then linspace(1, 0, K + 1), the prompts "prompt 0", "prompt 1", ...

    Raises ValueError that says what is wrong: no such file, unfinished, damaged, another layout.
    """
    path = Path(path)
    if path.is_dir():
        _require_finished(path)
        path = path / SCORES
    tensors, metadata = _read_tensors(path)
    if "recording" in metadata:
        header, values, _ = _check_scores(path, tensors, metadata)
        return header.recording(values)
    return recording_of(path, tensors, scores, price)


def save_recording(recording: Recording, folder: str | Path) -> None:
    """Write a recording that is in memory. ValueError where the folder holds other files, or another recording."""
    with OpenRecording(Path(folder), Header.of(recording)) as there:
        for unit in there.missing():
            there.add(unit, recording.columns, None)
        written = there.finish()
    if not np.array_equal(written.columns, recording.columns, equal_nan=True):
        raise ValueError(f"{folder} holds a recording with the same settings and other scores; choose another folder")


def read_images(folder: str | Path) -> Iterator[RecordedImage]:
    """(prompt index, seed, step, pixels) of every scored estimate, each file checked before it is read.

    Raises ValueError where the recording is unfinished, has no images, or a file is missing or damaged.
    """
    for shard in load_shards(folder)[1]:
        yield from read_shard(Path(folder) / IMAGES / shard.name, shard)


def load_shards(folder: str | Path) -> tuple[Header, list[Shard]]:
    """The settings of a finished recording, and the tars of its images. ValueError as of `load_recording`, and where it
    has no images."""
    folder = Path(folder)
    _require_finished(folder)
    header, scores, shards = _check_scores(folder / SCORES, *_read_tensors(folder / SCORES))
    header.recording(scores)  # every check of it
    if not header.images:
        raise ValueError(f"{folder} was recorded without images; record into another folder with --images")
    return header, shards


def progress(folder: str | Path) -> tuple[int, int]:
    """(units of work that are there, units in all) of a recording's folder; nothing is changed."""
    folder = Path(folder)
    header = _read_header(folder)
    units = header.units()
    if (folder / SCORES).exists():
        return len(units), len(units)
    done = _unpack(read_journal(folder / JOURNAL), header, units, folder)
    return len({each.unit for each in done}), len(units)


def shard_path(folder: Path, unit: Unit) -> Path:
    """Where a unit's images go."""
    return folder / IMAGES / f"unit-{unit.index:05d}.tar"


def check_folder(folder: Path, asked: Mapping[str, Json]) -> None:
    """ValueError unless `folder` is free for a recording, or holds one whose header has these keys and values."""

    def differing() -> list[str]:
        there = {"extras": [], "looks": [], **_read_header(folder).to_json()}
        return differences({key: there.get(key) for key in asked}, dict(asked))

    check_same(folder, RECORDING, differing, "recording")


@dataclass(frozen=True)
class _Done:
    """One record of the journal: a unit's scores (prompts, seeds, C, R), and its images' shard."""

    unit: int
    scores: FloatArray
    shard: Shard | None


class OpenRecording:
    """A folder that a recording is written to, begun or gone on with; open for one process at a time.

    Raises ValueError where the folder holds other files, a recording with other settings, or is in use.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        asked = {"extras": [], "looks": [], **header.to_json()}
        check_folder(folder, asked)
        self.folder, self.header, self._units = folder, header, header.units()
        with ExitStack() as held:
            if not (folder / SCORES).exists():
                held.enter_context(locked(folder))
                check_folder(folder, asked)  # again: another process may have begun here just before
            self.finished = (folder / SCORES).exists()
            if self.finished:
                (folder / JOURNAL).unlink(missing_ok=True)  # left by a process that was killed just before this
                self._held = ExitStack()
                return
            if header.images:
                (folder / IMAGES).mkdir(exist_ok=True)
            if not (folder / RECORDING).exists():
                text = json.dumps(header.to_json(), indent=1, ensure_ascii=False)
                write_text(folder / RECORDING, text)
            self._journal = held.enter_context(Journal(folder / JOURNAL))
            if not self._journal.records:
                self._journal.append(json.dumps({"header": header.digest()}).encode())
            done = _unpack(self._journal.records, header, self._units, folder)
            self._done = {d.unit: d for d in done if d.shard is None or self._has(d.shard)}
            self._held = held.pop_all()

    def _has(self, shard: Shard) -> bool:
        """Whether a recorded shard still lies there; else its unit is recorded again."""
        path = self.folder / IMAGES / shard.name
        return path.is_file() and path.stat().st_size == shard.size

    def missing(self) -> list[Unit]:
        """The units that are still to be recorded, in order."""
        return [] if self.finished else [unit for unit in self._units if unit.index not in self._done]

    def add(self, unit: Unit, scores: FloatArray, shard: Shard | None) -> None:
        """Keep a unit: its rows of `scores` (P, S, C, R), or those alone, and its images' shard, where there are any.

        ValueError where the shard does not lie in the folder, whole: who made it writes to another disk.
        """
        if shard is not None and not self._has(shard):
            raise ValueError(
                f"the images of unit {unit.index} were made, but {self.folder / IMAGES / shard.name} is not here: all "
                "machines must see the same folder, on a file system that they share"
            )
        if scores.shape == self.header.shape:
            scores = scores[unit.prompts.start : unit.prompts.stop, unit.seeds.start : unit.seeds.stop]
        done = _Done(unit.index, scores, shard)
        self._journal.append(_pack(done))
        self._done[unit.index] = done

    def finish(self) -> Recording:
        """Write the scores and remove the journal. ValueError when units are missing."""
        if self.finished:
            return load_recording(self.folder)
        if self.missing():
            raise ValueError(f"{len(self.missing())} of {len(self._units)} units are missing in {self.folder}")
        scores = np.full(self.header.shape, np.nan)
        for unit in self._units:
            block = self._done[unit.index].scores
            scores[unit.prompts.start : unit.prompts.stop, unit.seeds.start : unit.seeds.stop] = block
        shards = [dataclasses.asdict(d.shard) for _, d in sorted(self._done.items()) if d.shard is not None]
        # One key, since safetensors writes several in any order and the bytes should be the same every time.
        about = {**self.header.to_json(), "shards": shards, "crc32": zlib.crc32(scores.tobytes())}
        metadata = {"recording": json.dumps({**about, HEADER_CRC: checksum(about)})}
        write_whole(self.folder / SCORES, lambda file: file.write(save({"scores": scores}, metadata)))
        self._journal.close()
        (self.folder / JOURNAL).unlink(missing_ok=True)
        self.finished = True
        return self.header.recording(scores)

    def __enter__(self) -> OpenRecording:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


def _pack(done: _Done) -> bytes:
    """A line of JSON, then the scores' bytes, float64 little-endian."""
    shard = None if done.shard is None else dataclasses.asdict(done.shard)
    head = {"unit": done.unit, "shape": list(done.scores.shape), "shard": shard}
    return json.dumps(head).encode() + b"\n" + np.ascontiguousarray(done.scores, "<f8").tobytes()


def _unpack(records: list[bytes], header: Header, units: list[Unit], folder: Path) -> list[_Done]:
    """The units of a journal's records. ValueError where the journal, though whole, is not of this recording.

    The first record is the digest of the settings; journals that were begun before there was one lack it.
    """
    where = folder / JOURNAL
    heads = []
    for record in records:
        line, _, data = record.partition(b"\n")
        head = files.parse_json(line, where)
        if not isinstance(head, dict):
            raise ValueError(f"{where} is damaged: a record of it says not what it holds")
        heads.append((head, data))
    if heads and "header" in heads[0][0] and heads.pop(0)[0]["header"] != header.digest():
        raise ValueError(
            f"{folder / JOURNAL} was begun with other settings than {folder / RECORDING} holds: the two files are of "
            f"different recordings. Put back the {RECORDING} that the journal was begun with, or remove {JOURNAL} to "
            f"record everything again with the settings of this one"
        )
    done = []
    for head, data in heads:
        index, shape, shard = (head.get(name) for name in ("unit", "shape", "shard"))
        unit = units[index] if isinstance(index, int) and 0 <= index < len(units) else None
        wanted = [] if unit is None else [len(unit.prompts), len(unit.seeds), *header.shape[2:]]
        if unit is None or shape != wanted or len(data) != 8 * math.prod(wanted):
            raise ValueError(
                f"{where} does not belong to {RECORDING} beside it: unit {str(index)[:20]} of shape {str(shape)[:60]}"
            )
        scores = np.frombuffer(data, "<f8").reshape(wanted).astype(float)
        done.append(_Done(unit.index, scores, None if shard is None else Shard.read(shard, where)))
    return done


def _read_header(folder: Path) -> Header:
    where = folder / RECORDING
    try:
        text = files.read_bytes(where, files.JSON_BYTES).decode()
    except ValueError:
        raise ValueError(f"{folder} is no recording: it has no readable {RECORDING}") from None
    return Header.read(text, where)[0]


def _require_finished(folder: Path) -> None:
    if not (folder / SCORES).exists():
        there, units = progress(folder)
        raise ValueError(
            f"the recording in {folder} is unfinished: {there} of {units} units of work are there "
            f"({there / units:.0%}); run the same command again to go on with it"
        )


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata."""
    return files.read_tensors(path, "recording")


def _check_scores(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Header, FloatArray, list[Shard]]:
    """Header, scores and shards of a scores.safetensors, each held to its checksum."""
    header, extra = Header.read(metadata.get("recording", ""), path)
    unknown = set(extra) - {"format", "shards", "crc32", HEADER_CRC}
    if unknown:
        raise ValueError(f"{path} is damaged: its header has keys that no ttsnap writes: {sorted(unknown)}")
    scores = tensors.get("scores")
    if scores is None or scores.shape != header.shape or scores.dtype != np.float64:
        raise ValueError(f"{path} is damaged: it should hold scores of shape {header.shape}, float64")
    if zlib.crc32(scores.tobytes()) != extra.get("crc32"):
        raise ValueError(f"{path} is damaged: the scores do not have the checksum with which they were written")
    return header, np.asarray(scores, np.float64), read_shards(extra.get("shards", []), path)
