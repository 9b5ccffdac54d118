"""What SIGINT (Ctrl-C) and SIGTERM (from a scheduler that wants the machine back) do to a
command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttsnap.files.unbroken import Unbroken

Handler = Callable[[int, Any], Any] | int | signal.Handlers | None


class Interrupted(KeyboardInterrupt):
    """By a signal of this number; the message says what is safe."""

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(said)
        self.number = number


@contextmanager
def left_by_signals() -> Iterator[None]:
    """SIGTERM unwinds the block as Ctrl-C does, so that nothing is left behind; the exit status is
    then 143.

    Ctrl-C is heard where it was ignored, too, as it is in the background of a script."""

    def leave(number: int, _: object) -> None:
        raise Interrupted(number)

    before = {number: _handle(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            _handle(number, handler)


@contextmanager
def resumable(out: Path, safe: Callable[[], str] = lambda: "what is done is") -> Iterator[None]:
    """Work whose parts are kept in a folder, or in a file, so that the same command resumes it.

    safe: says what is safe there, for the message after a signal. ValueError where it cannot be
        written to."""
    again = "run the same command again to resume"
    try:
        with left_by_signals():
            yield
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        # of a part of the work, which has said more
        if isinstance(error, Interrupted) and str(error):
            raise
        raise Interrupted(number, f"interrupted; {safe()} safe in {out}; {again}") from None
    except OSError as error:
        mend = "Free some space or mend what is wrong"
        raise ValueError(
            f"cannot write to {out}: {error}; what was there is safe. {mend}, then {again}"
        ) from error


class StopOnSignal(Unbroken):
    """Called, whether a SIGINT or SIGTERM has come, at which the search ends with its best finished
    image."""

    then = "the best finished image will be written"

    def __exit__(self, *_: object) -> None:
        self._restore()


def _handle(number: int, handler: Handler) -> Handler:
    """Set a handler and return the one before; no effect outside the main thread, which alone gets
    signals."""
    if threading.current_thread() is not threading.main_thread() or handler is None:
        return None
    return signal.signal(number, handler)
