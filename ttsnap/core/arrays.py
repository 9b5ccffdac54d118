"""Names for the numpy arrays that every room passes around, and indexing that also works on stacks
of searches."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
BoolArray = NDArray[np.bool_]
_Kind = TypeVar("_Kind", bound=np.generic)


def take(array: NDArray[_Kind], rows: IntArray) -> NDArray[_Kind]:
    """array[rows], along the last axis where both have a leading axis of searches in lockstep."""
    if array.ndim == 1:
        return array[rows]
    n = array.shape[1]  # what np.take_along_axis finds, in a third of its time
    taken: NDArray[_Kind] = array.reshape(-1).take(rows + n * np.arange(len(array))[:, None])
    return taken
