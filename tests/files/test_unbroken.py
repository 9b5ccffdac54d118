"""Signals wait for the work at hand, then end the command with the conventional status and one
line."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from ttsnap.cli import COMMANDS, main
from ttsnap.cli.common import resumable
from ttsnap.cli.parser import Parser
from ttsnap.files.unbroken import Unbroken

pytestmark = pytest.mark.usefixtures("ctrl_c")


def command(work, monkeypatch):
    """The exit status of a command that does this work, and the units that it did."""
    done = []

    def run(_):
        with resumable(Path("out"), lambda: f"{len(done)} of 5 units are"):
            work(done)
        return 0

    monkeypatch.setitem(COMMANDS, "work", SimpleNamespace(parser=lambda: Parser(""), run=run))
    return main(["work"]), done


def told(number, times=1):
    for _ in range(times):
        os.kill(os.getpid(), number)


def finishing(number, done):
    for unit in range(5):
        with Unbroken():
            told(number, times=unit == 2)
            done.append(unit)


def asking(number, done):
    with Unbroken() as stopping:
        for unit in range(5):
            told(number, times=unit == 1)
            done.append(unit)
            if unit > 2 and stopping():
                raise KeyboardInterrupt


def twice(number, done):
    with Unbroken():
        told(number, times=2)
        done.append(0)


def between(number, done):
    with Unbroken():
        done.append(0)
    told(number)
    done.append(1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("work", "units"), [(finishing, 3), (asking, 4), (twice, 0), (between, 1)])
def test_what_is_at_hand_is_finished_unless_the_signal_comes_again(
    work, units, number, status, monkeypatch, capsys
):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert command(partial(work, number), monkeypatch) == (status, list(range(units)))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    *first, last = capsys.readouterr().err.strip().split("\n\n")
    assert bool(first) == (work is not between)
    assert all("saved" in line for line in first)
    assert (
        last
        == f"interrupted; {units} of 5 units are safe in out; run the same command again to resume"
    )


def test_ctrl_c_is_heard_where_it_was_ignored(monkeypatch, capsys):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    done = []
    with pytest.raises(KeyboardInterrupt):
        finishing(signal.SIGINT, done)  # in Python, without a command
    assert done == [0, 1, 2]
    assert command(partial(between, signal.SIGINT), monkeypatch) == (130, [0])
    assert "interrupted; 1 of 5 units are safe in out" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_an_error_is_not_hidden_by_a_signal(monkeypatch, capsys):
    def work(done):
        with Unbroken():
            told(signal.SIGINT)
            raise ValueError("the disk is on fire")

    assert command(work, monkeypatch) == (2, [])
    assert "on fire" in capsys.readouterr().err


def test_what_a_part_of_the_work_says_is_said_alone(monkeypatch, capsys):
    def work(done):
        with resumable(Path("out/recording"), lambda: "2 of 9 units of work are"), Unbroken():
            told(signal.SIGTERM)

    assert command(work, monkeypatch) == (143, [])
    said = capsys.readouterr().err
    assert "interrupted; 2 of 9 units of work are safe in out/recording" in said
    assert said.count("interrupted") == 1
