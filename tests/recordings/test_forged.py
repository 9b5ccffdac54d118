"""Folders from strangers that are gone on with: links, and units of other recordings."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from ttsnap.bench.folder import Found, open_bench
from ttsnap.core.grid import Grid
from ttsnap.files.run_folder import digest
from ttsnap.files.writing import LOCK, locked, part_of, write_whole
from ttsnap.recordings.folder import (
    load_recording,
    open_recording,
    packed,
    progress,
    save_recording,
)
from ttsnap.recordings.header import Header
from ttsnap.recordings.kept import KeptNumbers
from ttsnap.recordings.replay import Recording
from ttsnap.recordings.shards import Shard, ShardWriter, read_shard

RECORDING = Recording(
    ("a", "b"), np.random.default_rng(0).random((2, 2, 3, 1)), Grid((1.0, 0.5, 0.0)), ("r",)
)
HEADER = Header.of(RECORDING)


@pytest.fixture
def precious(tmp_path):
    """A file elsewhere, as one of the user's."""
    path = tmp_path / "precious.txt"
    path.write_text("mine")
    return path


@pytest.fixture
def folder(tmp_path):
    """A recording that was begun, as somebody hands it on."""
    path = tmp_path / "theirs"
    path.mkdir()
    (path / "recording.json").write_text(json.dumps(HEADER.to_json()))
    return path


@pytest.fixture
def bench(tmp_path):
    """A benchmark that was begun."""
    path = tmp_path / "b"
    (path / "arm" / "00000" / "samples").mkdir(parents=True)
    (path / "bench.json").write_text("{}")
    return path


def opened(begin, *given):
    """Open a folder, and close it again."""
    with begin(*given):
        pass


def test_nothing_is_written_through_a_link(folder, precious):
    (folder / LOCK).symlink_to(precious)
    with pytest.raises(ValueError, match="another file"):
        opened(open_recording, folder, HEADER)
    assert precious.read_text() == "mine"
    (folder / LOCK).unlink()
    part_of(folder / "recording.json").symlink_to(precious)
    (folder / "recording.json").unlink()
    with open_recording(folder, HEADER):
        for name in ("scores.safetensors", "unit-00000.safetensors"):
            part_of(folder / name).symlink_to(precious)
    save_recording(RECORDING, folder)
    assert precious.read_text() == "mine"
    assert np.array_equal(load_recording(folder).scores, RECORDING.scores)


def test_no_benchmark_is_written_through_a_link(bench, precious):
    found = bench / "arm" / "00000" / "found-00000.json"
    for path in (found, part_of(found)):
        path.symlink_to(precious)
    with pytest.raises(ValueError, match=found.name):
        opened(open_bench, bench, {})
    found.unlink()
    with open_bench(bench, {}) as there:
        found.symlink_to(precious)
        there.add([Found("arm", 0, 0, 3, 4, None, {}, {}, {})])
    assert precious.read_text() == "mine"
    assert json.loads(found.read_text())["seed"] == 4


def test_no_folder_is_written_through_a_link(folder, bench, tmp_path):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (folder / "images").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="another folder"):
        opened(open_recording, folder, HEADER)
    (bench / "arm" / "00001").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="00001 is"):
        opened(open_bench, bench, {})
    assert not list(elsewhere.iterdir())


def test_a_unit_from_another_recording_or_of_another_shape_is_refused(folder):
    about = {"header": digest(HEADER.to_json()), "shard": None}
    for scores, changes, said in (
        (
            RECORDING.columns,
            {"header": digest(replace(HEADER, block=(1, 2)).to_json())},
            "other settings",
        ),
        (
            RECORDING.columns,
            {"header": digest(replace(HEADER, info={"model": "another"}).to_json())},
            "other settings",
        ),
        (RECORDING.columns, {"header": 3}, "other settings"),
        (RECORDING.columns[:1], {}, "of shape"),
        (RECORDING.columns.astype(np.float32), {}, "float64"),
        (
            RECORDING.columns,
            {"shard": {"name": "../x.tar", "size": 0, "sha256": ""}},
            "names '../x.tar'",
        ),
    ):
        unit = folder / "unit-00000.safetensors"
        unit.write_bytes(forged := packed(scores, "unit", {**about, **changes}))
        for reader in (progress, lambda folder: opened(open_recording, folder, HEADER)):
            with pytest.raises(ValueError, match=said):
                reader(folder)
        assert unit.read_bytes() == forged


@pytest.mark.parametrize("numbers", [np.zeros(5), np.zeros((2, 2)), np.full(2, np.nan)])
def test_kept_numbers_that_do_not_fit_are_damaged(numbers, tmp_path):
    (tmp_path / "x").write_bytes(packed(numbers, "targets", {}))
    with pytest.raises(ValueError, match="at most 4"):
        KeptNumbers(tmp_path / "x", "targets", {}, 4)


@pytest.mark.parametrize("ended", [True, False])
def test_of_two_processes_that_write_one_file_one_is_told(tmp_path, ended):
    """The other one begins while we write, and ends before us or after."""
    path = tmp_path / "x.json"

    def meanwhile(file):
        part_of(path).unlink()
        part_of(path).write_bytes(b"theirs")
        if ended:
            part_of(path).rename(path)

    with pytest.raises(OSError, match="another process writes"):
        write_whole(path, meanwhile)
    (there,) = tmp_path.iterdir()
    assert (there, there.read_bytes()) == (path if ended else part_of(path), b"theirs")


@pytest.mark.parametrize(
    "begin", [lambda at: open_bench(at, {}), lambda at: open_recording(at, HEADER)]
)
def test_one_process_or_thread_at_a_time_is_in_a_folder(begin, tmp_path):
    held = rf"another process is writing to .*b \(process {os.getpid()} on "
    with begin(tmp_path / "b"), pytest.raises(ValueError, match=held):
        opened(begin, tmp_path / "b")
    with locked(tmp_path / "b"), pytest.raises(ValueError, match=held):
        opened(begin, tmp_path / "b")
    opened(begin, tmp_path / "b")
    assert not (tmp_path / "b" / LOCK).exists()


def test_a_shard_that_was_written_is_read(tmp_path):
    path = tmp_path / "unit-00000.tar"
    image = np.random.default_rng(0).random((3, 4, 5))
    with path.open("wb") as file:
        writer = ShardWriter(file)
        writer.add(0, 7, 2, image, {"latent": np.zeros((2, 2, 2))})
        writer.close()
    (found,) = read_shard(path, Shard.of(path))
    assert found[:3] == (0, 7, 2)
    assert np.array_equal(found.pixels, (image.transpose(1, 2, 0) * 255).round().astype(np.uint8))
