"""Batch sizes that a compiled network is asked for: few, so that pruning does not recompile at every size."""

from __future__ import annotations

from collections.abc import Sequence


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
