"""Recordings by several workers hold, to the last byte, what one process writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ttsnap.cli import main
from ttsnap.cluster import recorders
from ttsnap.options.model import ModelOptions
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import OpenRecording, load_recording, progress, read_images
from ttsnap.recordings.header import Unit
from ttsnap.recordings.record import record
from ttsnap.request.request import EngineSpec

from ..said import error_of  # noqa: TID252
from .toy import ToyBuilder

PROMPTS = ["two red circles and a blue square", "a green cross above a yellow triangle"]
WHAT = RecordOptions(seeds=8, seed=3, images=True, block=(1, 2))
"""Eight units of a prompt and two seeds."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def recorded_alone(builder: ToyBuilder, folder: Path) -> dict[str, bytes]:
    """What one process writes."""
    engine, info = builder.recording()
    record(engine, PROMPTS, folder, WHAT, info=info)
    return contents(folder)


@pytest.mark.usefixtures("ray_session")
def test_what_one_process_began_two_go_on_with_and_one_of_them_is_killed(tmp_path: Path) -> None:
    builder = ToyBuilder(EngineSpec(ModelOptions(), (tmp_path,)))
    whole = recorded_alone(builder, tmp_path / "whole")
    (tmp_path / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        recorded_alone(builder, tmp_path / "part")
    done, units = progress(tmp_path / "part")
    assert (0 < done < 4, units) == (True, 8)
    (tmp_path / "deadly").touch()
    found = recorders.record(builder, PROMPTS, tmp_path / "part", WHAT, workers=2)
    assert not (tmp_path / "deadly").exists()  # a worker was killed
    assert contents(tmp_path / "part") == whole
    assert found.scores.shape == (2, 8, 5, 1)
    assert len(list(read_images(tmp_path / "part"))) == 2 * 8 * 5


@pytest.mark.usefixtures("ray_session", "ctrl_c")
def test_a_signal_waits_for_the_units_of_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = ToyBuilder(EngineSpec(ModelOptions(), (tmp_path,)))
    whole, add, added = recorded_alone(builder, tmp_path / "whole"), OpenRecording.add, list[int]()

    def signalled(self: OpenRecording, unit: Unit, *made: Any) -> None:
        if not added:
            os.kill(os.getpid(), signal.SIGINT)
        add(self, unit, *made)
        added.append(unit.index)

    monkeypatch.setattr(OpenRecording, "add", signalled)
    with pytest.raises(KeyboardInterrupt):
        recorders.record(builder, PROMPTS, tmp_path / "part", WHAT, workers=2)
    assert len(added) in (2, 3), "that of the other worker, and one that was begun just before"
    assert progress(tmp_path / "part") == (len(added), 8)
    recorders.record(builder, PROMPTS, tmp_path / "part", WHAT, workers=2)
    assert contents(tmp_path / "part") == whole


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_that_load_a_model_write_what_the_command_writes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--seeds", "4", "--seed", "3", "--steps", "3", "--batch-size", "1", "--device", "cpu", "--images"]
    assert main(["record", *PROMPTS, *sizes, "--out", "alone"]) == 0
    assert main(["record", *PROMPTS, *sizes, "--out", "both", "--workers", "2"]) == 0
    both = contents(tmp_path / "both")
    assert both == contents(tmp_path / "alone")
    # With two threads floating point differed when this was written, and nothing else did.
    torch.set_num_threads(2)
    assert main(["record", *PROMPTS, *sizes, "--out", "threads"]) == 0
    torch.set_num_threads(1)
    threads = contents(tmp_path / "threads")
    assert set(threads) == set(both)
    assert threads["recording.json"] == both["recording.json"]
    one, other = (load_recording(folder) for folder in ("threads", "both"))
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
    named = [[image[:3] for image in read_images(folder)] for folder in ("threads", "both")]
    assert named[0] == named[1]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "3"], "3 workers take a CPU each, and there are 2"),
        (["--workers", "2", "--device", "cuda"], "no GPU is there for --device cuda"),
        (["--workers", "2", "--device", "cuda:1"], "give --device auto, cuda or cpu, got cuda:1"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--ray-address", "auto", "--reward", "magic"], "unknown reward 'magic'"),
    ],
)
def test_what_workers_cannot_do_gets_one_line(
    more: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["record", *PROMPTS, "--steps", "2", "--out", "r", *more]) == 2
    assert message in error_of(capsys)
    assert not Path("r").exists()


def test_one_process_takes_no_ray() -> None:
    code = ("import sys, ttsnap.cli.record, ttsnap.request.request, ttsnap.recordings.record\n"
            "import ttsnap.pipelines.engine_factory\n"
            "sys.exit('ray' in sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
