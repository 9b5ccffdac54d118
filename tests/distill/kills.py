"""Work that ends early: by SIGKILL, as when the power fails, when it touches a file; or by an error
of a function."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def ended(work: Callable[[], object], folder: Path, seed: int) -> int:
    """Do this again and again, each time killed at a moment drawn from the seed, later ones as it
    goes on, until it ends; how often it was killed."""
    dice = random.Random(seed)
    for kills in itertools.count():
        if not killed(work, folder, dice.randint(2, 20 + 10 * kills)):
            return kills
    raise AssertionError


def killed(work: Callable[[], object], folder: Path, moment: int) -> bool:
    """Do this in a forked process, which is killed just before it touches files in `folder` for the
    time `moment`, counted from 1; whether it was, as it may have ended before."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)
    code = 1
    try:
        left = moment

        def listen(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            # What lies in a folder that is removed goes by its name alone.
            if event in EVENTS and (
                str(arguments[0]).startswith(str(folder)) or event in ("os.remove", "os.rmdir")
            ):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        torch.set_num_threads(1)  # others do not outlive a fork
        sys.addaudithook(listen)
        work()
        code = 0
    finally:
        os._exit(code)


@contextmanager
def calls(
    of: Any,
    name: str,
    fails: int = 0,
    error: type[BaseException] = KeyboardInterrupt,
    meanwhile: Callable[[], object] = lambda: None,
) -> Iterator[list[Any]]:
    """The arguments of each call of this function. Call number `fails`, from 1, raises an error
    instead; right after the first one something else happens."""
    function, seen = getattr(of, name), list[Any]()

    def counted(*args: Any, **kwargs: Any) -> Any:
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
