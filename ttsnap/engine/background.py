"""The thread that asks rewards which leave the denoiser's device free, and the rows that wait for
them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ttsnap.engine.scoring import BegunScores

T = TypeVar("T")


class Background:
    """Makes calls one after the other, in a thread that lives while there are some."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call. What it returns or raises is the future's; one cancelled by then is not
        made."""
        future: Future[T] = Future()
        with self._lock:
            self._calls.append((future, call))
            # A thread may be left that Ctrl-C, or a lack of threads, kept from starting.
            if self._thread is None or not self._thread.is_alive():
                # No program waits for it to end: a server may take minutes to answer.
                self._thread = threading.Thread(
                    target=self._run, name="ttsnap-rewards", daemon=True
                )
                self._thread.start()
        return future

    def _run(self) -> None:
        left = True
        while left:
            _make(*self._calls[0])
            with self._lock:
                self._calls.popleft()
                left = bool(self._calls)
                if not left:
                    self._thread = None


def _make(future: Future[T], call: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:  # raised where the result is wanted
            future.set_exception(error)
            del future, call  # else the error would keep them, and itself


class Asked(deque[BegunScores]):
    """What is asked for one engine, in the order in which it is told."""

    @property
    def row_count(self) -> int:
        return sum([len(begun.rows) for begun in self])

    @property
    def jobs(self) -> set[int]:
        return {row.job for begun in self for row in begun.rows}

    def drop(self) -> None:
        """Nobody wants to know any more."""
        for begun in self:
            for future in begun.waits:
                future.cancel()
        self.clear()
