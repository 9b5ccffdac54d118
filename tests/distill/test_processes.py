"""The processes of a run: how they find each other, and what only one of them does and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from ttsnap.distill import processes

from ttsnap.cli import main

from .world import settings, write_recording


class Process:
    """One of an accelerator's processes."""

    device = torch.device("cpu")

    def __init__(self, index: int, num_processes: int = 2) -> None:
        self.is_main_process, self.num_processes = index == 0, num_processes


@pytest.mark.parametrize(
    ("device", "gpu", "cpu"), [("auto", False, True), ("auto", True, False), ("cpu", False, True), ("cpu", True, True)]
)
def test_processes_without_a_gpu_join_each_other(
    device: str, gpu: bool, cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """accelerate joins processes on CPUs only where it is told that there is nothing else."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **kwargs: (asked.update(kwargs), Process(0))[1])
    processes.start(tmp_path, "distill", cpu=device == "cpu", shown=True)
    assert asked["cpu"] is cpu
    assert capsys.readouterr().out == "2 processes on cpu\n"


def test_a_launcher_that_started_one_of_several_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu --num_processes 2` leaves these two, and no number of the process."""
    for name in processes.RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(
        ValueError, match=r"started only this one.*add --multi_gpu.*--num_processes 2 -m ttsnap distill"
    ):
        processes.start(tmp_path, "distill", cpu=False, shown=True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: Process(0))
    processes.start(tmp_path, "distill", cpu=False, shown=False)


def test_what_fails_in_one_process_ends_all_and_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda values: told.extend(values) or told[-1:])

    def fails() -> None:
        raise ValueError("the folder is in use")

    with pytest.raises(ValueError, match="in use"):
        processes.alone(Process(0), fails)
    assert told == [True]
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda values: [True])
    with pytest.raises(SystemExit) as ended:
        processes.alone(Process(1), fails)  # not called here
    assert ended.value.code == 2
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda values: [False])
    processes.alone(Process(1), fails)


def test_one_process_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
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
    monkeypatch.setenv("RANK", "1")
    assert not processes.is_main()
    assert main(argv) == 0
    assert "| noise |" not in capsys.readouterr().out
