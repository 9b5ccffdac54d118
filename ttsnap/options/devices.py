"""On how many devices one search runs."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.options.option import option


@dataclass(frozen=True)
class DeviceOptions:
    """Where a search finds its devices. What comes out is the same, but for the last digits.

    Raises ValueError for what is no number of devices.
    """

    devices: int | str = option(
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

    reward_actors: int = option(
        0,
        "devices beside them for rewards that have a network (image towers, VLMs), a copy of each on every one",
        shell="they take Ray; 0: rewards are where the candidates are",
        metavar="N",
    )

    def __post_init__(self) -> None:
        right = self.devices in ("all", "auto") if isinstance(self.devices, str) else self.devices >= 1
        if not right or isinstance(self.devices, bool):
            raise ValueError(f"devices must be a number from 1 on, all or auto, got {self.devices!r}")
        if isinstance(self.reward_actors, bool) or self.reward_actors < 0:
            raise ValueError(f"reward_actors must be a number from 0 on, got {self.reward_actors!r}")
