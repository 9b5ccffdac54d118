"""Stacks: what B searches in lockstep hold, in arrays whose first axis is that of the searches.

Searches that are not served keep what they proposed. The others' part is then picked out of the stack, the algorithm
is asked for these alone, and what it answers is put back.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ttsnap.core.arrays import IntArray
from ttsnap.core.moves import Rows
from ttsnap.core.protocols import AlgorithmState

_Kind = TypeVar("_Kind", bound=np.generic)


def pick(state: AlgorithmState, searches: IntArray, of: int) -> AlgorithmState:
    """The state of some searches out of that `of` B: a named tuple, of whose fields the stacked ones are shortened."""
    return type(state)(*(field[searches] if _is_stacked(field, of) else field for field in state))


def put(state: AlgorithmState, part: AlgorithmState, searches: IntArray, of: int) -> None:
    """Write the state of some searches, as `pick` gave it and the algorithm changed it, into that `of` B."""
    for whole, some in zip(state, part, strict=True):
        if _is_stacked(whole, of):
            whole[searches] = some


def column_of(column: NDArray[_Kind], searches: IntArray) -> NDArray[_Kind]:
    """A column of a move of some searches: (k, n), or (n,) where it is the same in all."""
    return column if column.ndim == 1 else column[searches]


def merged(old: Rows, new: Rows, searches: IntArray) -> Rows:
    """The rows (B, n) that all searches want: `new` (k, n) of these k searches, `old` of the others."""

    def column(old: NDArray[_Kind], new: NDArray[_Kind]) -> NDArray[_Kind]:
        both = np.array(np.broadcast_to(old, shape))
        both[searches] = new
        return both

    shape = old.parent.shape
    return Rows(column(old.kind, new.kind), column(old.parent, new.parent), column(old.start, new.start),
                column(old.stop, new.stop), column(old.score, new.score), column(old.share, new.share))  # fmt: skip


def widened(array: NDArray[_Kind], more: int, fill: int) -> NDArray[_Kind]:
    """The array (B, N) with room for so many particles more in each search, filled with `fill`."""
    b, n = array.shape
    wide = np.full((b, n + more), fill, array.dtype)
    wide[:, :n] = array
    return wide


def _is_stacked(field: object, of: int) -> bool:
    """Whether a field of a state has one entry for each of B searches; others are the same for all of them."""
    return isinstance(field, np.ndarray) and field.ndim > 0 and len(field) == of
