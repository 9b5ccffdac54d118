"""What SIGINT (Ctrl-C) and SIGTERM (from a scheduler that wants the machine back) do to a command."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Handler = Callable[[int, Any], Any] | int | signal.Handlers | None


@contextmanager
def left_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the block, as Ctrl-C does, so that nothing is left behind; the exit status is then 143."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = _handle(signal.SIGTERM, leave)
    try:
        yield
    finally:
        _handle(signal.SIGTERM, before)


@contextmanager
def resumable(out: Path, safe: Callable[[], str] = lambda: "what is done is") -> Iterator[None]:
    """Work whose parts are kept in a folder, so that the same command resumes it.

    safe: says what is safe there, for the message after Ctrl-C. ValueError where the folder cannot be written to."""
    again = "run the same command again to resume"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {safe()} safe in {out}\n{again}") from None
    except OSError as error:
        mend = "Free some space or mend what is wrong"
        raise ValueError(f"cannot write to {out}: {error}; what was there is safe. {mend}, then {again}") from error


class StopOnSignal:
    """Called, whether a SIGINT or SIGTERM has come, at which the search ends with its best finished image.

    A second signal aborts: SIGINT by KeyboardInterrupt, SIGTERM by the handler before."""

    def __enter__(self) -> StopOnSignal:
        self._asked = False
        self._before = {number: _handle(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            _handle(number, handler)

    def _ask(self, *_: object) -> None:
        self._asked = True
        self.__exit__()
        print("\nstopping; the best finished image will be written (Ctrl-C again to abort)", file=sys.stderr)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._asked


def _handle(number: int, handler: Handler) -> Handler:
    """Set a handler and return the one before; no effect outside the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread() or handler is None:
        return None
    return signal.signal(number, handler)
