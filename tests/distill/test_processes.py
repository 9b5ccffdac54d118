"""The processes of a run: how they find each other, and what only one of them does and prints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate import PartialState

from ttsnap.cli import main
from ttsnap.distill import processes
from ttsnap.distill.processes import Member

from .world import settings, write_recording


def test_a_launcher_that_started_one_of_several_is_named(monkeypatch):
    """`accelerate launch --cpu --num_processes 2` leaves these two, and no number of the
    process."""
    alone = SimpleNamespace(
        device=torch.device("cpu", 0), is_main_process=True, process_index=0, num_processes=1
    )
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: alone)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match=r"--multi_gpu --num_processes 2"):
        processes.start("distill", cpu=False)
    monkeypatch.setenv("RANK", "0")
    assert not processes.start("distill", cpu=False).shown


def test_what_fails_in_one_process_ends_all_and_is_said_once(
    monkeypatch,
):
    told = []
    monkeypatch.setattr(
        "accelerate.utils.broadcast_object_list", lambda values: told.extend(values) or told[-1:]
    )

    def fails():
        raise ValueError("the folder is in use")

    with pytest.raises(ValueError, match="in use"):
        Member(0, 2).alone(fails)
    assert told == [True]
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda values: [True])
    with pytest.raises(SystemExit) as ended:
        Member(1, 2).alone(fails)  # not called here
    assert ended.value.code == 2
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda values: [False])
    Member(1, 2).alone(fails)


def test_one_process_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recording = write_recording(tmp_path / "r", prompts=4, seeds=4)
    Path("c.json").write_text(json.dumps(settings(recording, steps_per_level=1)))
    argv = ["distill", "--config", "c.json", "--trust", "--out", "out"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 process on cpu\n| noise |")
    assert "\ntiny uses what was trained at every noise level\n" in out
    assert main(argv) == 0
    assert capsys.readouterr().out == out  # a finished run says it again
    monkeypatch.setattr(PartialState, "is_main_process", False)
    assert main(argv) == 0
    assert "| noise |" not in capsys.readouterr().out
