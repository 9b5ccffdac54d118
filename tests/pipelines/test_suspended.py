"""Programs that are ended where they wait, and where their thread is just starting."""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import Any

import pytest

from ttsnap.pipelines import suspended
from ttsnap.pipelines.suspended import NAME, Suspended


def threads():
    return sum(thread.name == NAME for thread in threading.enumerate())


def cleans_up(ask):
    try:
        ask(1)
    finally:
        ask(2)


def swallows(ask):
    for question in range(3):
        try:
            ask(question)
        except:  # noqa: E722
            continue


@pytest.mark.parametrize("program", [cleans_up, swallows])
def test_a_program_that_asks_where_it_cleans_up_ends(program):
    call = Suspended(program)
    closing = threading.Thread(target=call.close, daemon=True)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    assert threads() == 0


def test_a_program_that_never_ends_is_left_after_a_while(monkeypatch):
    over = threading.Event()

    def program(ask):
        try:
            ask(1)
        finally:
            over.wait(30)

    monkeypatch.setattr(suspended, "PATIENCE", 0.05)
    call, began = Suspended(program), time.monotonic()
    call.close()
    assert time.monotonic() - began < 5
    over.set()


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_while_a_thread_starts_is_told_alone_and_no_program_runs(begun, monkeypatch):
    start, told, ran = threading.Thread.start, list[Any](), list[Any]()

    def interrupted(thread):
        if begun:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(sys, "excepthook", lambda *error: told.append(error))
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Suspended(ran.append)
    gc.collect()
    assert (told, ran, threads()) == ([], [], 0)
