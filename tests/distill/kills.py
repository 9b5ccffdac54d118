"""Work that ends early: by SIGKILL, as when the power fails, when it touches a file; or by an error
of a function."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
SECONDS = 200
"""After which work that hangs is ended."""


def ended(work, folder, seed):
    """Do this again and again, each time killed at a moment drawn from the seed, later ones as it
    goes on, until it ends; how often it was killed."""
    dice = random.Random(seed)
    for kills in itertools.count():
        if not killed(work, folder, dice.randint(2, 20 + 10 * kills)):
            return kills
    raise AssertionError


def killed(work, folder, moment):
    """Do this in another process, which is killed just before it touches files in `folder` for the
    time `moment`, counted from 1; whether it was, as it may have ended before. What is done must be
    picklable."""
    status = _asked(work, folder, moment)
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL, "it hangs"
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def undisturbed(work):
    """Do this in the process of which those that are killed are forks: it then has all that the
    work imports, and they need not import it again."""
    assert _asked(work, Path(), 0) == 0


def _asked(*what):
    asked = _forking()
    asked.send(what)
    status = asked.recv()
    return status


@cache
def _forking():
    """To a process without threads, which forks for this one.

    A lock that another thread holds, as those of servers here, stays held in a fork for ever.
    """
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    spawn.Process(target=_fork_when_asked, args=(there,), daemon=True).start()
    there.close()
    return here


def _fork_when_asked(asked):
    tqdm.monitor_interval = 0  # else bars have a thread
    with suppress(EOFError):
        while True:
            work, folder, moment = asked.recv()
            if moment == 0:
                work()
                asked.send(threading.active_count() - 1)
            elif child := os.fork():
                asked.send(os.waitpid(child, 0)[1])
            else:
                _killed_at(moment, work, folder)


def _killed_at(moment, work, folder):
    left, code = moment, 1

    def listen(event, arguments):
        nonlocal left
        # What lies in a folder that is removed goes by its name alone.
        if event in EVENTS and (
            str(arguments[0]).startswith(str(folder)) or event in ("os.remove", "os.rmdir")
        ):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        signal.alarm(SECONDS)
        torch.set_num_threads(1)
        sys.addaudithook(listen)
        work()
        code = 0
    finally:
        os._exit(code)


@contextmanager
def calls(
    of,
    name,
    fails=0,
    error=KeyboardInterrupt,
    meanwhile=lambda: None,
):
    """The arguments of each call of this function. Call number `fails`, from 1, raises an error
    instead; right after the first one something else happens."""
    function, seen = getattr(of, name), list[Any]()

    def counted(*args, **kwargs):
        seen.append(args)
        first = len(seen) == 1
        if len(seen) == fails:
            raise error("No space left on device")
        found = function(*args, **kwargs)
        if first:
            meanwhile()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, name, counted)
        yield seen
