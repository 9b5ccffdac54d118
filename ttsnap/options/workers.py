"""Who does the work, for commands whose work falls into independent pieces."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.files.settings import Bounded, Count
from ttsnap.options.option import option


@dataclass(frozen=True)
class WorkerOptions(Bounded):
    """How the work of one command is spread. What comes out is the same.

    Raises ValueError for fewer workers than one.
    """

    workers: Count = option(
        1,
        "processes that share the work; a good number is that of the CPU cores",
        shell="each starts within a second or two, and the result is the same to the last digit",
        metavar="N",
    )
