"""How many rows fit into a device's memory, measured on probe batches rather than guessed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ttsnap.core.memory import NotEnoughMemoryError, lacks_memory, shortage

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
SHARE = 0.85
"""Of what is free, the share that a batch may plan with: allocators fragment, and other processes
grow."""


class Gauge:
    """The memory of a CUDA device in bytes, as PyTorch's allocator sees it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> int:
        """Start a measurement; what is allocated now."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return int(torch.cuda.memory_allocated(self.device))

    def peak(self) -> int:
        """The most that was allocated since."""
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.max_memory_allocated(self.device))

    def free(self) -> int:
        """What could be allocated now."""
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + cached


def gauge_of(device: torch.device) -> Gauge | None:
    """None where PyTorch does not tell what is allocated (CPU, MPS)."""
    return Gauge(device) if device.type == "cuda" and torch.cuda.is_available() else None


def fitting(
    batch: Sequence[T], call: Callable[[Sequence[T]], R], lacks: Callable[[int, str], None]
) -> tuple[R, int]:
    """call(batch), or of the first half as often as memory runs out; and how many of the first rows
    that took.

    lacks: told of each lack, with the rows that were tried and what was short; raises where that
        was one row.
    """
    n = len(batch)
    while True:
        try:
            return call(batch[:n]), n
        except NotEnoughMemoryError:  # fewer would not help
            raise
        except Exception as error:
            if not lacks_memory(error):
                raise
            logger.debug("out of memory with %d rows", n, exc_info=True)
            short = shortage(error)
        # Outside the handler, whose traceback would hold on to what was allocated.
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        lacks(n, short)
        n //= 2


def fit_rows(
    run: Callable[[int], object], gauge: Gauge, most: int, several: int = 3
) -> tuple[int, int]:
    """The largest batch up to `most` whose peak fits, from a run of one row and one of several; and
    the rows that ran.

    What a batch takes is taken to rise by as much with every row. Modules that an offload hook
    brings in by the first run count as taken. At least 1: where one row does not fit, its own error
    is raised.
    """
    taken = gauge.reset()
    free = gauge.free()
    run(1)
    one = gauge.peak()
    if most == 1:
        return 1, 1
    gauge.reset()
    try:
        run(several)
    except Exception as error:
        if not lacks_memory(error):
            raise
        logger.info("%d rows do not fit into memory: batches of 2 at most", several)
        return 2, 1 + several
    row = max(1.0, (gauge.peak() - one) / (several - 1))
    rows = 1 + int((taken + SHARE * free - one) // row)
    batch_size = max(1, min(most, rows))
    mib = [v / 2**20 for v in (row, free)]
    logger.info("a row takes %.0f MiB and %.0f MiB are free: batches of %d", *mib, batch_size)
    return batch_size, 1 + several
