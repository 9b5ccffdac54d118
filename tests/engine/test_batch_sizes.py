"""Batch sizes: found when first asked for, halved where memory runs out, and never silently below one row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from ttsnap.engine.batch_sizes import BatchSizes, bucket_of, buckets

Given = tuple[int | None, int | None]


def sizes(denoise: int | None = 8, decode: int | None = 4) -> tuple[BatchSizes, dict[str, int], list[Given]]:
    """The sizes, what they count, and what they asked to be found."""
    stats: dict[str, int] = defaultdict(int)
    asked: list[Given] = []

    def find(denoise: int | None, decode: int | None) -> tuple[int, int]:
        asked.append((denoise, decode))
        return denoise or 6, decode or 3

    return BatchSizes(denoise, decode, find, stats), stats, asked


def fits(most: int) -> Callable[[Sequence[int]], list[int]]:
    """A call that takes at most so many rows."""

    def call(batch: Sequence[int]) -> list[int]:
        if len(batch) > most:
            raise torch.OutOfMemoryError(f"{len(batch)} rows")
        return list(batch)

    return call


@pytest.mark.parametrize(("given", "found"), [((None, None), (6, 3)), ((2, None), (2, 3)), ((None, 9), (6, 9))])
def test_what_was_not_given_is_found_once(given: Given, found: tuple[int, int]) -> None:
    own, _, asked = sizes(*given)
    assert not asked
    assert (own.batch_size, own.decode_batch_size, own.batch_size) == (*found, found[0])
    assert asked == [given]


def test_a_call_gets_no_more_rows_than_the_size() -> None:
    own, stats, asked = sizes()
    assert own.run(range(20), list) == (list(range(8)), 8)
    assert own.run(range(20), list, decoding=True) == (list(range(4)), 4)
    assert own.run([1, 2], list) == ([1, 2], 2)
    assert (stats, asked) == ({}, [])


def test_halving_is_from_what_was_tried_and_for_good() -> None:
    own, stats, _ = sizes()
    assert own.run(range(20), fits(3)) == ([0, 1], 2)  # 8, 4, 2
    assert (own.batch_size, own.decode_batch_size, stats["out_of_memory"]) == (2, 4, 2)
    own, stats, _ = sizes()
    assert own.run([7, 8, 9], fits(1)) == ([7], 1)  # 3, 1: less than the size were there
    assert (own.batch_size, stats["out_of_memory"]) == (1, 1)
    assert own.run(range(9), fits(2), decoding=True) == ([0, 1], 2)
    assert (own.batch_size, own.decode_batch_size) == (1, 2)


def test_one_row_too_many_is_an_error() -> None:
    own, _, _ = sizes()
    with pytest.raises(torch.OutOfMemoryError, match="1 rows"):
        own.run(range(8), fits(0))


@pytest.mark.parametrize("given", [(0, None), (None, -1)])
def test_sizes_below_one_are_refused(given: Given) -> None:
    with pytest.raises(ValueError, match="least 1, got"):
        sizes(*given)


@drawn(st.integers(1, 500), st.data())
def test_a_bucket_is_a_power_of_two_or_the_batch_itself(batch_size: int, data: st.DataObject) -> None:
    n, sizes = data.draw(st.integers(1, batch_size)), buckets(batch_size)
    assert n <= bucket_of(n, sizes) < 2 * n
    assert set(sizes) == {batch_size, *(2**i for i in range(10) if 2**i < batch_size)}
    for none in (0, batch_size + 1):
        with pytest.raises(ValueError, match=f"holds {none} rows"):
            bucket_of(none, sizes)
