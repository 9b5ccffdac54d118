"""Rows of a batch in frames, and what frames make of them in the order of rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.pipelines.calls.conditions import Condition
from ttsnap.pipelines.calls.frame import CallFrame


class Placed(NamedTuple):
    """A frame, and the rows whose latents its first images are."""

    frame: CallFrame
    rows: Sequence[int]


class Evaluation(NamedTuple):
    """An evaluation under way."""

    x: Tensor
    step: Tensor
    conditions: Sequence[Condition]
    """Of its rows."""
    placed: Sequence[Placed]
    given: Sequence[Tensor]
    """What frames were given."""
    before: Sequence[int]
    """How often that was changed in place then."""


def taken(x: Tensor, rows: Sequence[int], width: int) -> Tensor:
    """Rows of x (N, ...), and the last again for further images of a frame."""
    start = rows[0]
    if list(rows) == list(range(start, start + width)):
        return x[start : start + width]
    rows = [*rows, *[rows[-1]] * (width - len(rows))]
    return torch.cat([x[row : row + 1] for row in rows])


def in_order(placed: Sequence[Placed], values: Sequence[Tensor]) -> Tensor:
    """What frames have (n, ...) for their images, in the order of rows (N, ...)."""
    found = dict[int, Tensor]()
    for (frame, rows), value in zip(placed, values, strict=True):
        if len(placed) == 1 and frame.images == frame.width and list(rows) == sorted(rows):
            return value
        found |= {row: value[i : i + 1] for i, row in enumerate(rows)}
    return torch.cat([found[row] for row in range(len(found))])


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x (N, ...) in the memory layout of `like` (1, ...).

    The last digits of a matrix product depend on it.
    """
    strides = like.stride()
    axes = [0, *sorted(range(1, x.ndim), key=lambda axis: -strides[axis])]
    if axes == sorted(axes):
        return x
    return x.permute(axes).contiguous().permute([axes.index(axis) for axis in range(x.ndim)])


def mean_of(out: Tensor, x: Tensor) -> Tensor:
    """A network's output without a variance, which some predict, too."""
    return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def graph_of(x: Tensor) -> AbstractContextManager[Any]:
    """Lets what is computed of x have a graph where x is followed by gradients, and none else."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad)
