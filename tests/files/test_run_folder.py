"""Folders of work: whole units after a kill at any moment, a full disk, and a second process; other
settings are refused once something was done."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distill.kills import calls, killed
from ttsnap.bench.folder import Found, open_bench
from ttsnap.bench.layout import image_path
from ttsnap.core.grid import Grid
from ttsnap.distill import checkpoints
from ttsnap.files import run_folder
from ttsnap.files.run_folder import json_folder, whole_folder
from ttsnap.files.writing import LOCK, as_json, write_bytes
from ttsnap.recordings.folder import open_recording
from ttsnap.recordings.header import Header
from ttsnap.recordings.replay import Recording

Units = dict[str, list[bytes]]
"""By name, the content of a file, or of the files of a folder."""
RECORDING = Recording(("a", "b"), np.ones((2, 2, 3, 1)), Grid((1.0, 0.5, 0.0)), ("r",))
HEADER = Header(**{**Header.of(RECORDING).__dict__, "block": (1, 2)})


def run_of(folder, seed=1):
    return json_folder(folder, "about.json", "work", {"seed": seed, "call": {"steps": 4}})


def work(folder, units, seed=1):
    """Make the units that are missing."""
    with run_of(folder, seed).opened():
        for name, parts in units.items():
            if (folder / name).exists():
                assert whole(folder / name, parts)
            elif len(parts) == 1:
                write_bytes(folder / name, parts[0])
            else:
                with whole_folder(folder / name) as made:
                    for i, part in enumerate(parts):
                        (made / str(i)).write_bytes(part)


def whole(unit, parts):
    files = [unit] if unit.is_file() else sorted(unit.iterdir())
    return [path.read_bytes() for path in files] == parts


def record(folder):
    with open_recording(folder, HEADER) as there:
        for unit in there.missing():
            there.add(unit, RECORDING.columns[unit.rows], None)
        there.finish()


def bench(folder):
    with open_bench(folder, {"seed": 1}) as there:
        for index in (index for index in range(2) if not there.has("arm", 0, index)):
            path = image_path(folder, "arm", index, 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, b"image")
            there.add([Found("arm", 0, index, 5, 4, None, {}, {}, {})])


def train(folder):
    with run_of(folder).opened():
        first, _ = checkpoints.latest(folder / "steps", {}) or (0, None)
        for step in range(first + 1, 3):
            checkpoints.save(folder / "steps", step, lambda to: (to / "a").write_text("b"), {})


SOME = {"a": [b"one"], "b": [b"two", b"three"], "c": [b""]}
WORKS = {
    "units": partial(work, units=SOME),
    "recording": record,
    "benchmark": bench,
    "training": train,
}


def contents(folder):
    """What lies there, but for a lock and what is half made, which a kill leaves."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".part" not in str(path) and path.name != LOCK
    }


@pytest.mark.parametrize("name", WORKS)
def test_killed_at_any_moment_it_is_gone_on_with(name, tmp_path):
    WORKS[name](tmp_path / "undisturbed")
    for moment in itertools.count(1, 2):
        folder = tmp_path / str(moment)
        if not killed(partial(WORKS[name], folder), folder, moment):
            break
        WORKS[name](folder)
        assert contents(folder) == contents(tmp_path / "undisturbed"), moment
    assert moment > 12


names = st.text("abcdefgh", min_size=1, max_size=3)


@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    units=st.dictionaries(names, st.lists(st.binary(max_size=9), min_size=1, max_size=3)),
    kills=st.lists(st.integers(1, 40), max_size=4),
)
def test_after_kills_each_unit_is_there_or_not(units, kills, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "f"
    for moment in kills:
        killed(partial(work, folder, units), folder, moment)
        assert all(whole(folder / n, units[n]) for n in units if (folder / n).exists())
    work(folder, units)
    assert all(whole(folder / n, units[n]) for n in units)
    assert (folder / "about.json").exists() == bool(units)


@pytest.mark.parametrize("name", WORKS)
def test_a_full_disk_is_an_error_after_which_it_is_gone_on_with(name, tmp_path):
    WORKS[name](tmp_path / "undisturbed")

    for write in itertools.count(1):
        folder = tmp_path / str(write)
        with calls(os, "fsync", fails=write, error=OSError) as made, suppress(OSError):
            WORKS[name](folder)
        if len(made) < write:
            break
        WORKS[name](folder)
        assert contents(folder) == contents(tmp_path / "undisturbed"), write
    assert write > 5


def test_other_settings_are_refused_once_something_was_done(tmp_path):
    folder = tmp_path / "f"
    work(folder, {})
    assert not folder.exists()
    folder.mkdir()
    (folder / "about.json").write_text("{")  # of one that was killed at the very start
    work(folder, {"a": [b"1"]})
    before = contents(folder)
    with pytest.raises(ValueError, match=r"seed.* 1\b.* 2\b.*folder") as refused:
        work(folder, {}, seed=2)
    assert str(folder) in str(refused.value)
    assert contents(folder) == before


def test_one_at_a_time_and_none_where_nothing_may_be_written(tmp_path, monkeypatch):
    folder = tmp_path / "f"
    with run_of(folder).opened(), pytest.raises(ValueError, match=f"process {os.getpid()}"):
        work(folder, SOME)
    assert not folder.exists()
    monkeypatch.setattr(run_folder.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match=str(tmp_path)):
        work(folder, SOME)
    assert not folder.exists()


def test_what_is_not_ours_is_left_alone(tmp_path):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (folder := tmp_path / "f").mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        work(folder, SOME)
    (folder / "about.json").write_text(as_json({"seed": 1, "call": {"steps": 4}}))
    (folder / "b").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="link"):
        work(folder, SOME)
    assert not list(elsewhere.iterdir())
    assert (folder / "thesis.tex").read_text() == "precious"


def test_checkpoints_after_a_damaged_one_are_kept(tmp_path):
    def save(step):
        checkpoints.save(tmp_path, step, lambda folder: (folder / "a").write_text(f"{step}"), {})

    for step in (10, 20, 30):
        save(step)
    for step in (20, 30):
        (tmp_path / f"{step:08d}" / "a").write_text("damaged")
    assert checkpoints.latest(tmp_path, {}) is None
    save(1)
    assert checkpoints.latest(tmp_path, {}) == (1, tmp_path / "00000001")
