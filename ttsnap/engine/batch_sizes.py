"""How many rows the engine takes at once: given, measured, or halved when the device runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping, Sequence
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class BatchSizes:
    """batch_size: most rows in a call of the denoiser; decode_batch_size: most images in a decode and a reward call.

    None where a size is to be found when first asked for: by `find`, which gets both and returns both. ValueError for
    sizes below 1. stats: where it counts how often memory ran out.
    """

    def __init__(
        self,
        batch_size: int | None,
        decode_batch_size: int | None,
        find: Callable[[int | None, int | None], tuple[int, int]],
        stats: MutableMapping[str, int],
    ) -> None:
        if any(size is not None and size < 1 for size in (batch_size, decode_batch_size)):
            raise ValueError(f"batch sizes must be at least 1, got {batch_size} and {decode_batch_size}")
        self._sizes, self._find, self._stats = (batch_size, decode_batch_size), find, stats

    @property
    def batch_size(self) -> int:
        return self._found()[0]

    @property
    def decode_batch_size(self) -> int:
        return self._found()[1]

    def _found(self) -> tuple[int, int]:
        denoise, decode = self._sizes
        if denoise is None or decode is None:
            denoise, decode = self._sizes = self._find(denoise, decode)
        return denoise, decode

    def run(self, batch: Sequence[T], call: Callable[[Sequence[T]], R], *, decoding: bool = False) -> tuple[R, int]:
        """call(batch), on the first half of it and with that size from now on as often as memory runs out.

        What the call returned, and how many of the first rows it took. decoding: a batch of images, not of rows for the
        denoiser. torch.OutOfMemoryError where one row is too many.
        """
        while True:
            n = min(len(batch), self._found()[int(decoding)])
            try:
                return call(batch[:n]), n
            except torch.OutOfMemoryError:
                if n < 2:
                    raise
                self._halve(n // 2, decoding)
            # Outside the handler, whose traceback would hold on to what was allocated.
            self._stats["out_of_memory"] += 1
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()

    def _halve(self, half: int, decoding: bool) -> None:
        denoise, decode = self._found()
        self._sizes = (denoise, half) if decoding else (half, decode)
        logger.warning("out of memory: %s is %d from now on", "decode_batch_size" if decoding else "batch_size", half)


def buckets(batch_size: int) -> tuple[int, ...]:
    """The powers of two up to `batch_size`, and `batch_size` itself, ascending. ValueError below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    powers = {1 << k for k in range(batch_size.bit_length())}
    return tuple(sorted(powers | {batch_size}))


def bucket_of(n: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds n rows. ValueError where none does."""
    fits = [size for size in sizes if size >= n]
    if n < 1 or not fits:
        raise ValueError(f"no bucket of {tuple(sizes)} holds {n} rows")
    return min(fits)
