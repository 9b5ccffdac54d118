"""Folders from strangers that are gone on with: links, files of holes, and what is no file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from ttsnap.bench.folder import Found, OpenBench
from ttsnap.core.grid import Grid
from ttsnap.files.writing import LOCK, locked, part_of, write_whole
from ttsnap.recordings.folder import OpenRecording, load_recording, packed, progress, save_recording
from ttsnap.recordings.header import Header
from ttsnap.recordings.replay import Recording

RECORDING = Recording(("a", "b"), np.random.default_rng(0).random((2, 2, 3, 1)), Grid((1.0, 0.5, 0.0)), ("r",))
HEADER = Header.of(RECORDING)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file elsewhere, as one of the user's."""
    path = tmp_path / "precious.txt"
    path.write_text("mine")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording that was begun, as somebody hands it on."""
    path = tmp_path / "theirs"
    path.mkdir()
    (path / "recording.json").write_text(json.dumps(HEADER.to_json()))
    return path


def test_nothing_is_written_through_a_link(folder: Path, precious: Path) -> None:
    (folder / LOCK).symlink_to(precious)
    with pytest.raises(ValueError, match="another file"):
        OpenRecording(folder, HEADER)
    assert precious.read_text() == "mine"
    (folder / LOCK).unlink()
    part_of(folder / "recording.json").symlink_to(precious)
    (folder / "recording.json").unlink()
    with OpenRecording(folder, HEADER):
        for name in ("scores.safetensors", "unit-00000.safetensors"):
            part_of(folder / name).symlink_to(precious)
    save_recording(RECORDING, folder)
    assert precious.read_text() == "mine"
    assert np.array_equal(load_recording(folder).scores, RECORDING.scores)


def test_no_benchmark_is_written_through_a_link(tmp_path: Path, precious: Path) -> None:
    samples = tmp_path / "b" / "arm" / "00000" / "samples"
    samples.mkdir(parents=True)
    (tmp_path / "b" / "bench.json").write_text("{}")
    found = samples.parent / "found-00000.json"
    for path in (found, part_of(found)):
        path.symlink_to(precious)
    with pytest.raises(ValueError, match=r"found-00000\.json"):
        OpenBench(tmp_path / "b", {})
    found.unlink()
    with OpenBench(tmp_path / "b", {}) as there:
        found.symlink_to(precious)
        there.add([Found("arm", 0, 0, 3, 4, None, {}, {}, {})])
    assert precious.read_text() == "mine"
    assert json.loads(found.read_text())["seed"] == 4


def test_no_folder_is_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (folder / "images").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="another folder"):
        OpenRecording(folder, HEADER)
    (bench := tmp_path / "b" / "arm").mkdir(parents=True)
    (tmp_path / "b" / "bench.json").write_text("{}")
    (bench / "00000").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="00000 is"):
        OpenBench(tmp_path / "b", {})
    assert not list(elsewhere.iterdir())


def test_a_benchmark_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("bench.json", "journal.bin"):
        (tmp_path / "b" / name).write_text("{}")
    with pytest.raises(ValueError, match=r"remove journal\.bin"):
        OpenBench(tmp_path / "b", {})


def test_a_unit_from_another_recording_or_of_another_shape_is_refused(folder: Path) -> None:
    about = {"header": HEADER.digest(), "shard": None}
    for scores, changes, said in (
        (RECORDING.columns, {"header": "0" * 64}, "other settings"),
        (RECORDING.columns, {"header": 3}, "other settings"),
        (RECORDING.columns[:1], {}, "should hold scores of shape"),
        (RECORDING.columns.astype(np.float32), {}, "should hold scores, float64"),
        (RECORDING.columns, {"shard": {"name": "../x.tar", "size": 0, "sha256": ""}}, "names '../x.tar'"),
    ):
        (folder / "unit-00000.safetensors").write_bytes(packed(scores, "unit", {**about, **changes}))
        with pytest.raises(ValueError, match=said):
            progress(folder)
        with pytest.raises(ValueError, match=said):
            OpenRecording(folder, HEADER)


@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_of_two_processes_that_write_one_file_one_is_told(tmp_path: Path, last: str) -> None:
    """The other one begins while we write, and ends before us or after."""
    path = tmp_path / "x.json"
    begun, go = threading.Event(), threading.Event()

    def theirs(file: BinaryIO) -> None:
        begun.set()
        assert go.wait(20)
        file.write(b"theirs")

    other = threading.Thread(target=write_whole, args=(path, theirs))

    def ours(file: BinaryIO) -> None:
        other.start()
        assert begun.wait(20)
        if last == "ours":
            go.set()
            other.join()
        file.write(b"ours")

    with pytest.raises(OSError, match="another process writes"):
        write_whole(path, ours)
    go.set()
    other.join()
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["benchmark", "recording"])
def test_one_process_at_a_time_is_in_a_folder(kind: str, tmp_path: Path) -> None:
    begin = {
        "benchmark": lambda: OpenBench(tmp_path / "b", {}),
        "recording": lambda: OpenRecording(tmp_path / "b", HEADER),
    }
    with (
        begin[kind](),
        pytest.raises(ValueError, match=rf"another process is writing to .*b \(process {os.getpid()} on "),
    ):
        begin[kind]()
    with locked(tmp_path / "b"), pytest.raises(ValueError, match="another process"):
        begin[kind]()
    begin[kind]().__exit__()
