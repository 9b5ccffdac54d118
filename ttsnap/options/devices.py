"""On how many devices one search runs, and who does the work of commands whose work falls into independent pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ttsnap.files.settings import Count, Natural, Settings
from ttsnap.options.option import option


@dataclass(frozen=True)
class DeviceOptions(Settings):
    """Where a search finds its devices. What comes out is the same, but for the last digits.

    Raises ValueError for what is no number of devices.
    """

    devices: Count | Literal["all", "auto"] = option(
        1,
        "devices that search together, a model on each: a number, all (GPUs, or CPU cores where there is none), or "
        "auto (all GPUs where there are several)",
        shell="more than one takes Ray",
        metavar="N",
    )
    ray_address: str | None = option(
        None,
        "the Ray cluster whose devices search, as HOST:6379, or auto for the one that this machine belongs to",
        unset="this machine alone",
        metavar="HOST:PORT",
        loads="address",
    )
    reward_actors: Natural = option(
        0,
        "devices beside them for rewards that have a network (image towers, VLMs), a copy of each on every one",
        shell="they take Ray; 0: rewards are where the candidates are",
        metavar="N",
    )


@dataclass(frozen=True)
class WorkerOptions(Settings):
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
