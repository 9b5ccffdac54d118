"""Work that a signal does not cut in two: what is at hand is finished and saved first."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any, ClassVar


class Unbroken:
    """A block during which SIGINT (Ctrl-C) and SIGTERM wait: they are handled at its end, a second
    one at once.

    Called, whether one waits: the block then saves what it has and raises KeyboardInterrupt, in
    place of which the signal is handled. No effect outside the main thread, which alone gets
    signals."""

    then: ClassVar[str] = "what is at hand will be saved"
    """What follows a signal, in words."""

    def __enter__(self) -> Any:
        self._number = 0
        main = threading.current_thread() is threading.main_thread()
        self._before = {
            n: signal.signal(n, self._wait) for n in (signal.SIGINT, signal.SIGTERM) if main
        }
        return self

    def _wait(self, number: int, _: object) -> None:
        self._number = number
        self._restore()
        print(f"\nstopping; {self.then} (Ctrl-C again to abort)", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._number > 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._restore()
        if self._number and kind in (None, KeyboardInterrupt):
            signal.raise_signal(self._number)
            # it was ignored before, as in the background of a script; it was heard here
            raise KeyboardInterrupt
