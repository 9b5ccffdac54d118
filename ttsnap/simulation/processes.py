"""Independent pieces of work side by side, in processes of one machine; with one worker in this
process, alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Unit = TypeVar("Unit")
Made = TypeVar("Made")


@contextmanager
def working(
    function: Callable[[Unit], Made], workers: int
) -> Iterator[Callable[[Iterable[Unit]], Iterator[Made]]]:
    """What maps units of work to what `function` makes of them, in their order, in so many
    processes.

    function: its result must depend on the unit alone. With several workers it is sent once to each
    of them, and units one by one: all must be picklable, and a script that calls this needs `if
    __name__ == "__main__":`, as new processes import it.

    The end of the `with` block ends the workers, whatever caused it: an exception, Ctrl-C, or that
    this process is killed. Raises ValueError for fewer workers than 1, ChildProcessError where one
    was killed, and what `function` raises.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        yield partial(map, function)
        return
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
    from multiprocessing import get_context

    context = get_context("spawn")  # forking a process that has threads, as numpy's, may hang
    leash, hand = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _begin, (function, leash))
    try:
        yield cast("Callable[[Iterable[Unit]], Iterator[Made]]", partial(pool.map, _do))
        pool.shutdown()
    except BrokenProcessPool:
        raise ChildProcessError(
            f"one of the {workers} worker processes ended before its work was done; unless it says"
            " above why, it was killed, or there was not enough memory: take fewer --workers"
        ) from None
    finally:
        hand.close()
        pool.shutdown(wait=False, cancel_futures=True)
        leash.close()


_FUNCTION: list[Callable[[object], object]] = []
"""In a worker process: what it does with units."""


def _begin(function: Callable[[Unit], Made], leash: Connection) -> None:
    """Make this process a worker. Ctrl-C reaches all processes of a terminal; their owner ends
    them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(leash,), daemon=True).start()
    _FUNCTION.append(cast("Callable[[object], object]", function))


def _do(unit: object) -> object:
    return _FUNCTION[0](unit)


def _end_with(leash: Connection) -> None:
    """End this process, whatever it does, once the other end of the pipe is closed: by hand, or as
    its owner is gone.

    An executor alone waits for the units under way, and its processes stay where their owner was
    killed.
    """
    with suppress(EOFError, OSError):
        leash.recv_bytes()
    os._exit(1)
