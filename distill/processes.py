"""The processes of a run under a launcher: how they join, what they exchange, and what one of them
does for all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Member:
    """One of the processes of a run.

    rank, count: its number among how many.
    device: where it computes.
    shown: whether it shows progress.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = _CPU
    shown: bool = False

    @property
    def is_main(self) -> bool:
        """Whether it is the first one, which writes what is written once."""
        return self.rank == 0

    def any(self, asked: bool) -> bool:
        """Whether some process says so. All must call this at once."""
        return bool(self.gather(torch.tensor([float(asked)])).any())

    def gather(self, values: Tensor) -> Tensor:
        """Values (N,) of all processes, one after the other, on the CPU in the dtype of
        `values`."""
        if self.count == 1:
            return values
        from accelerate.utils import gather

        together: Tensor = gather(values.float().to(self.device))
        return together.to("cpu", values.dtype)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def leave(self) -> None:
        """The end: no process waits for this one any more."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def alone(self, part: Callable[[], object]) -> None:
        """Let the first process do a part while the others wait. Where it raises, all end; only the
        first says why."""
        from accelerate.utils import broadcast_object_list

        failed: BaseException | None = None
        if self.is_main:
            try:
                part()
            except BaseException as error:  # a signal's, too
                failed = error
        (ended,) = broadcast_object_list([failed is not None])
        if failed is not None:
            raise failed
        if ended:
            raise SystemExit(2)


ALONE = Member()
"""The only process of its run."""


def start(command: str, *, cpu: bool, shown: bool = False) -> Member:
    """Join the processes of `ttsnap COMMAND`.

    cpu: whether to leave GPUs alone. shown: whether the first process shows progress, and prints
    how many processes there are, and where. ValueError under `accelerate launch` with several
    processes of which it started only one: it does so on CPUs and with a single GPU, and says
    nothing.
    """
    from accelerate import PartialState

    # With cpu=True accelerate joins processes on CPUs; otherwise each would run alone. The time
    # limit is long, as the others wait while the first one records.
    state = PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=timedelta(days=7))
    main = state.is_main_process
    count = state.num_processes
    if (
        count == 1
        and "RANK" not in os.environ
        and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    ):
        raise ValueError(
            "accelerate launch was asked for several processes and started only this one, as it"
            " does with --cpu and with a single GPU; add --multi_gpu, which starts them on CPUs,"
            f" too: accelerate launch --multi_gpu --num_processes 2 -m ttsnap {command} ..."
            " --device cpu"
        )
    if shown and main:
        print(f"{count} process{'es' if count > 1 else ''} on {state.device.type}", flush=True)
    # accelerate numbers CPUs, too, which networks do not.
    device = _CPU if state.device.type == "cpu" else state.device
    return Member(state.process_index, count, device, shown and main)
