"""Announcements of what is loaded, with the seconds that it takes: imports and models keep people
waiting."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds since a command began, and how many of them went into loading."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Set both to zero."""
        self._begin = time.monotonic()
        self.loading = 0.0

    @property
    def total(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._begin

    def __str__(self) -> str:
        return f"{self.total:.1f} s in all, {self.loading:.1f} s of them loading"


CLOCK = Clock()
"""The clock of the running command."""


def speaks() -> bool:
    """Whether this process prints: of those that `accelerate launch` starts, one does."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def loading(what: str, *, bars: bool = False) -> Iterator[None]:
    """Print on stderr what is being loaded, and at the end how long it took.

    bars: whether progress bars may be drawn meanwhile, which need lines of their own.
    """
    if speaks():
        print(f"loading {what} ...", end="\n" if bars else "", flush=True, file=sys.stderr)
    begin = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - begin
        CLOCK.loading += seconds
        if speaks():
            print(
                f"loaded in {seconds:.1f} s" if bars else f" {seconds:.1f} s",
                flush=True,
                file=sys.stderr,
            )


def load_torch() -> None:
    """Import torch."""
    if "torch" not in sys.modules:
        with loading("torch"):
            import torch  # noqa: F401


def load_libraries() -> None:
    """Import torch and the libraries of pipelines."""
    load_torch()
    if "ttsnap.pipelines.mixin" not in sys.modules:
        from ttsnap.pipelines.quiet import quiet

        # whose advice is to install torchvision: no search needs it
        with loading("diffusers"), quiet("transformers"):
            import ttsnap.pipelines.mixin  # noqa: F401
