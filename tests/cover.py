"""Which combinations of two lists the fast tests run."""

from __future__ import annotations

from itertools import product

import pytest


def each_once(rows, columns):
    """All pairs as parameters of a test; slow but for a diagonal, on which every row and every
    column stands."""
    rounds = max(len(rows), len(columns))
    fast = {(i % len(rows), i % len(columns)) for i in range(rounds)}
    return [
        pytest.param(row, column, marks=[] if (i, j) in fast else [pytest.mark.slow])
        for (i, row), (j, column) in product(enumerate(rows), enumerate(columns))
    ]
