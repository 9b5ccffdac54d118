"""Who does the work, for commands whose work falls into independent pieces: searches that are simulated, recordings."""

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
        "processes that share the work, as many as there are CPU cores, or GPUs for a model",
        shell="what comes out is the same",
        metavar="N",
        common=True,
    )
    ray_address: str | None = option(
        None,
        "the Ray cluster whose machines the workers run on, as HOST:6379, or auto for the one that this machine "
        "belongs to; all of them must see the folder --out",
        unset="this machine alone",
        metavar="HOST:PORT",
        loads="address",
    )
