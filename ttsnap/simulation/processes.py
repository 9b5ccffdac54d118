"""Independent pieces of work side by side, in processes of one machine; with one worker in this process, alone."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Generic, TypeVar, cast

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Unit = TypeVar("Unit")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Workers(Generic[Unit, Made]):
    """What does the work: `submit` takes a unit and answers with a Future of what is made of it; `count` of them are
    worked on at a time. With a count of 1 `submit` does the unit before it returns."""

    submit: Callable[[Unit], Future[Made]]
    count: int

    def each(self, units: Iterable[Unit]) -> Iterator[Made]:
        """What is made of each unit, in their order, while a few of those that follow are worked on already."""
        ahead: deque[Future[Made]] = deque()
        most = 2 * self.count if self.count > 1 else 0
        for unit in units:
            ahead.append(self.submit(unit))
            if len(ahead) > most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@contextmanager
def working(function: Callable[[Unit], Made], count: int) -> Iterator[Workers[Unit, Made]]:
    """`count` workers that call `function` with units of work.

    function: what it makes of a unit must depend on the unit alone, so that it does not matter who does which. With
    several workers it is sent to each of them once, at the start, and units one by one: all must be picklable, and a
    script that calls this needs `if __name__ == "__main__":`, as new processes import it.

    Whatever ends the `with` block ends the workers, too: an exception, Ctrl-C, or that this process is killed. Raises
    ValueError for a count below 1, ChildProcessError where a worker was killed; what `function` raises, `result()`
    raises here.
    """
    if count < 1:
        raise ValueError(f"workers must be at least 1, got {count}")
    if count == 1:

        def here(unit: Unit) -> Future[Made]:
            done: Future[Made] = Future()
            done.set_result(function(unit))
            return done

        yield Workers(here, 1)
        return
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
    from multiprocessing import get_context

    context = get_context("spawn")  # forking a process that has threads, as numpy's, may hang
    leash, hand = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, context, _begin, (function, leash))

    def there(unit: Unit) -> Future[Made]:
        return cast("Future[Made]", pool.submit(_do, unit))

    try:
        yield Workers(there, count)
        pool.shutdown()
    except BrokenProcessPool:
        raise ChildProcessError(
            f"one of the {count} worker processes ended before its work was done; unless it says above why, it was "
            "killed, or there was not enough memory: take fewer --workers"
        ) from None
    finally:
        hand.close()
        pool.shutdown(wait=False, cancel_futures=True)
        leash.close()


_FUNCTION: list[Callable[[object], object]] = []
"""In a worker process: what it does with units."""


def _begin(function: Callable[[Unit], Made], leash: Connection) -> None:
    """Make this process a worker. Ctrl-C reaches all processes of a terminal; their owner ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(leash,), daemon=True).start()
    _FUNCTION.append(cast("Callable[[object], object]", function))


def _do(unit: object) -> object:
    return _FUNCTION[0](unit)


def _end_with(leash: Connection) -> None:
    """End this process, whatever it does, once the other end of the pipe is closed: by hand, or as its owner is gone.

    An executor alone waits for the units under way, and its processes stay where their owner was killed.
    """
    with suppress(EOFError, OSError):
        leash.recv_bytes()
    os._exit(1)
