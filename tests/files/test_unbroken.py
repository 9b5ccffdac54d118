"""Signals wait for the work at hand, then end the command with the conventional status and one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ttsnap.cli import COMMANDS, main
from ttsnap.cli.parser import Parser
from ttsnap.cli.signals import resumable
from ttsnap.files.unbroken import Unbroken

pytestmark = pytest.mark.usefixtures("ctrl_c")
BOTH = pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


def command(work: Callable[[list[int]], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[int]]:
    """The exit status of a command that does this work, and the units that it did."""
    done: list[int] = []

    def run(_: Any) -> int:
        with resumable(Path("out"), lambda: f"{len(done)} of 5 units are"):
            work(done)
        return 0

    monkeypatch.setitem(COMMANDS, "work", SimpleNamespace(parser=lambda: Parser(""), run=run))
    return main(["work"]), done


@BOTH
def test_the_unit_at_hand_is_finished(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(done: list[int]) -> None:
        for unit in range(5):
            with Unbroken():
                if unit == 2:
                    os.kill(os.getpid(), number)
                done.append(unit)

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert command(work, monkeypatch) == (status, [0, 1, 2])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    first, last = capsys.readouterr().err.strip().split("\n\n")
    assert first == "stopping; what is at hand will be saved (Ctrl-C again to abort)"
    assert last == "interrupted; 3 of 5 units are safe in out; run the same command again to resume"


@BOTH
def test_a_block_that_asks_ends_where_it_likes(number: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(done: list[int]) -> None:
        with Unbroken() as stopping:
            for unit in range(5):
                if unit == 1:
                    os.kill(os.getpid(), number)
                done.append(unit)
                if unit > 2 and stopping():
                    raise KeyboardInterrupt

    assert command(work, monkeypatch) == (status, [0, 1, 2, 3])


@BOTH
def test_a_second_signal_and_one_between_blocks_end_at_once(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(done: list[int]) -> None:
        with Unbroken():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            done.append(0)

    def between(done: list[int]) -> None:
        with Unbroken():
            done.append(0)
        os.kill(os.getpid(), number)
        done.append(1)

    assert command(twice, monkeypatch) == (status, [])
    assert command(between, monkeypatch) == (status, [0])


def test_an_error_is_not_hidden_by_a_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(done: list[int]) -> None:
        with Unbroken():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("the disk is on fire")

    assert command(work, monkeypatch) == (2, [])
    assert "the disk is on fire" in capsys.readouterr().err


def test_what_a_part_of_the_work_says_is_said_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(done: list[int]) -> None:
        with resumable(Path("out/recording"), lambda: "2 of 9 units of work are"), Unbroken():
            os.kill(os.getpid(), signal.SIGTERM)

    assert command(work, monkeypatch) == (143, [])
    said = capsys.readouterr().err
    assert "interrupted; 2 of 9 units of work are safe in out/recording" in said
    assert said.count("interrupted") == 1
