"""The processes of a run under a launcher: how they start, and what one of them does while the others wait."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from ttsnap.distill.config import TRACKERS, DistillConfig

from ttsnap.files.settings import Json, to_json

if TYPE_CHECKING:  # it takes a second to import
    from accelerate import Accelerator

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where torchrun and the MPIs tell a process its number."""


def is_main() -> bool:
    """Whether this process is the first of its run, or the only one: known before accelerate is loaded."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0) == 0


@dataclass(frozen=True)
class Member:
    """One of the `count` processes of a run, by its number, and whether it shows how far the run is."""

    rank: int = 0
    count: int = 1
    shown: bool = False

    @property
    def is_main(self) -> bool:
        """Whether it is the first one, which writes what is written once."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor, all of them of one type, to its mean over the processes. All must call this at once."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        flat: Tensor = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
        _set(tensors, flat)

    def take_over(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor, all of them of one type, to that of the first process. All must call this at once."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        _set(tensors, broadcast(torch.cat([tensor.flatten() for tensor in tensors])))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


ALONE = Member()
"""The only process of its run."""


@torch.no_grad()
def _set(tensors: Sequence[Tensor], flat: Tensor) -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def member_of(accelerator: Accelerator, *, bar: bool) -> Member:
    """This process. bar: whether the run shows how far it is, which only the first process does."""
    main = accelerator.is_main_process
    return Member(accelerator.process_index, accelerator.num_processes, bar and main)


def device_of(accelerator: Accelerator) -> torch.device:
    """Where this process computes, as networks name it: accelerate numbers CPUs, too."""
    return torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device


def start(
    out: Path, command: str, *, cpu: bool, shown: bool, precision: str | None = None, trackers: Sequence[str] = ()
) -> Accelerator:
    """The Accelerator of `ttsnap COMMAND`; `shown` prints how many processes there are, and where.

    cpu: whether to leave GPUs alone. precision: accelerate's mixed precision; None where it casts nothing.
    ValueError for a tracker that is not installed, and under `accelerate launch` with several processes of which it
    started only one: it does so on CPUs and with a single GPU, and says nothing.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    for tracker in trackers:
        if not any(importlib.util.find_spec(module) for module in TRACKERS[tracker]):
            raise ValueError(f"the tracker {tracker} is not installed: pip install {TRACKERS[tracker][0]}")
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and not os.environ.keys() & {*RANKS}:
        raise ValueError(
            "accelerate launch was asked for several processes and started only this one, as it does with --cpu and "
            "with a single GPU; add --multi_gpu, which starts them on CPUs, too: "
            f"accelerate launch --multi_gpu --num_processes 2 -m ttsnap {command} ... --device cpu"
        )
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            # Told that there are only CPUs, it joins the processes; otherwise each would go on alone.
            cpu=cpu or not torch.accelerator.is_available(),
            log_with=list(trackers) or None,
            project_dir=str(out),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=timedelta(days=7)),  # the others wait while the first one records
            ],
        )
    except ValueError as error:  # accelerate's state lives as long as the process
        raise ValueError(f"cannot set up accelerate: {error}; use a new process for another precision") from None
    if shown and accelerator.is_main_process:
        count = accelerator.num_processes
        print(f"{count} process{'es' if count > 1 else ''} on {accelerator.device.type}", flush=True)
    return accelerator


def alone(accelerator: Accelerator, part: Callable[[], None]) -> None:
    """Let the main process do a part while the others wait. Where it raises, all end; only the main one says why."""
    from accelerate.utils import broadcast_object_list

    failed: Exception | None = None
    if accelerator.is_main_process:
        try:
            part()
        except (ValueError, OSError) as error:
            failed = error
    (ended,) = broadcast_object_list([failed is not None])
    if failed is not None:
        raise failed
    if ended:
        raise SystemExit(2)


def track(accelerator: Accelerator, config: DistillConfig) -> None:
    """Start the trackers that the configuration names."""
    if config.trackers:
        accelerator.init_trackers("ttsnap-distill", _flat(to_json(config)))


def _flat(values: Mapping[str, Json], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested options by "section.key". Trackers take only numbers and texts, so any other value becomes text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
