"""Buckets of batch sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsnap.engine.batch_sizes import bucket_of, buckets


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (16, (1, 2, 4, 8, 16)), (24, (1, 2, 4, 8, 16, 24))],
)
def test_powers_of_two_and_the_batch_itself(batch_size: int, expected: tuple[int, ...]) -> None:
    assert buckets(batch_size) == expected


@given(st.integers(1, 500), st.data())
def test_a_batch_takes_less_than_twice_its_rows(batch_size: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, batch_size))
    sizes = buckets(batch_size)
    assert n <= bucket_of(n, sizes) < 2 * n
    assert bucket_of(n, sizes) in sizes
    assert len(sizes) <= batch_size.bit_length() + 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        buckets(0)
    for n in (0, 9):
        with pytest.raises(ValueError, match=f"holds {n} rows"):
            bucket_of(n, buckets(8))
