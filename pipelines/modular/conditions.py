"""What rows are denoised under: the state of a loop for each prompt and seed, and many of them as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Sequence[Any]], Any]
"""How one field of several rows' states becomes that of a batch."""


def stack(rows: Sequence[Any]) -> Any:
    """Tensors (1, ...) as one (N, ...); anything else must be alike in all rows, and is taken once."""
    first = rows[0]
    if not isinstance(first, Tensor) or first.dim() == 0:
        return alike(rows)
    return torch.cat(list(rows))


def alike(rows: Sequence[Any]) -> Any:
    """What all rows share, without a batch axis: ids of positions, numbers, names. The first is taken for all."""
    return rows[0]


def pad(rows: Sequence[Any]) -> Any:
    """Texts (1, L, D), or their masks (1, L), of different lengths: zeros behind the shorter ones, as one batch."""
    if not isinstance(rows[0], Tensor):
        return alike(rows)
    longest = max(row.shape[1] for row in rows)
    return torch.cat([_padded(row, longest) for row in rows])


def joined(rows: Sequence[Any]) -> Any:
    """Lists with one entry a row, as one list."""
    return [entry for row in rows for entry in row] if isinstance(rows[0], list) else alike(rows)


def collated(rows: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The states of a batch's rows as one state: fields by their rule, `stack` where there is none, dicts by field."""
    values = {}
    for name, first in rows[0].items():
        column = [row[name] for row in rows]
        values[name] = collated(column, rules) if isinstance(first, dict) else rules.get(name, stack)(column)
    return values


def _padded(row: Tensor, length: int) -> Tensor:
    missing = length - row.shape[1]
    return torch.cat([row, row.new_zeros(1, missing, *row.shape[2:])], dim=1) if missing else row
