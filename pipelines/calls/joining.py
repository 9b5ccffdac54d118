"""Calls of one network by several frames as one call, and its result as theirs.

    calls                  # two of {"sample": (2, 4, 8, 8), "timestep": ()}
    one = joined(calls)    # {"sample": (4, 4, 8, 8), "timestep": ()}
    parted(out, [2, 2])    # two of (2, 4, 8, 8), where out is what one makes

A value with a row for each of a call's rows is concatenated. What has none must be equal in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ttsnap.pipelines.calls.questions import PartCall
from ttsnap.pipelines.calls.values import shape_of, tensors_in

INPUTS = ("hidden_states", "sample", "x", "z")
"""What networks and decoders call the argument whose first axis is that of their rows."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a joined result may be from that of a call alone, as a share of the largest value."""


class UnlikeError(ValueError):
    """Calls that cannot be one."""


class PartArguments(NamedTuple):
    """Those of a call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """How many rows it has. UnlikeError where that is not to be seen."""
        first = self.input
        if not isinstance(first, Tensor | list) or (isinstance(first, Tensor) and first.ndim == 0):
            raise UnlikeError(f"no rows are seen in {type(first).__name__}")
        return len(first)

    @property
    def input(self) -> Any:
        """The argument with a row for each: a tensor, or a list with one tensor a row."""
        named = [self.kwargs[name] for name in INPUTS if name in self.kwargs]
        return (*named, *self.args, None)[0]


def rows_of(call: PartCall) -> int:
    """How many rows a call has; 1 where that is not to be seen."""
    try:
        return PartArguments(call.args, call.kwargs).rows
    except UnlikeError:
        return 1


def joined(
    calls: Sequence[PartArguments],
    *,
    aligned: bool,
    equal: Callable[[Tensor, Tensor], bool] = torch.equal,
) -> PartArguments:
    """One call of several. aligned: whether all frames are at one index, and so at one timestep.

    UnlikeError where they differ in what has no rows.
    """
    first = calls[0]
    if len({(len(call.args), tuple(call.kwargs)) for call in calls}) > 1:
        raise UnlikeError("calls with other arguments")
    rows = [call.rows for call in calls]
    join = _Join(rows, isinstance(first.input, list), aligned, equal)
    args = tuple(join(column) for column in zip(*(call.args for call in calls), strict=True))
    kwargs = {name: join([call.kwargs[name] for call in calls]) for name in first.kwargs}
    return PartArguments(args, kwargs)


@dataclass(frozen=True)
class _Join:
    """Makes one argument of those of several calls."""

    rows: Sequence[int]
    """Of each call."""
    listed: bool
    """Whether they are entries of lists."""
    aligned: bool
    equal: Callable[[Tensor, Tensor], bool]

    def __call__(self, values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return self._tensors(values)
        if isinstance(first, Generator):
            # Most decoders take one and draw nothing. Of others a trial differs.
            return first.clone_state()
        if isinstance(first, dict):
            return self._dicts(values)
        alike = all(type(each) is type(first) for each in values)
        if isinstance(first, list | tuple) and first and alike:
            return self._lists(values)
        if any(each is not first and each != first for each in values):
            raise UnlikeError(f"values without rows that differ, as {first!r:.40}")
        return first

    def _tensors(self, values: Sequence[Tensor]) -> Tensor:
        first = values[0]
        if any(not isinstance(each, Tensor) for each in values):
            raise UnlikeError("tensors and others")
        if any(shape_of(each) != shape_of(first) for each in values):
            raise UnlikeError("tensors of other shapes")
        if first.ndim and self._have_rows(values):
            return torch.cat(list(values))
        if first.numel() == 1 and first.ndim < 2 and not self.aligned:
            # A timestep for all rows of a call.
            each_rows = zip(values, self.rows, strict=True)
            return torch.cat([value.expand(n) for value, n in each_rows])
        if any(each is not first and not self.equal(each, first) for each in values):
            raise UnlikeError("tensors without rows that differ")
        return first

    def _dicts(self, values: Sequence[Any]) -> dict[str, Any]:
        first = values[0]
        if any(not isinstance(each, dict) or each.keys() != first.keys() for each in values):
            raise UnlikeError("dicts with other names")
        return {name: self([each[name] for each in values]) for name in first}

    def _lists(self, values: Sequence[Any]) -> Any:
        """Rows are joined in order, other entries with those in their place."""
        first = values[0]
        if self.listed and self._have_rows(values):
            return type(first)(one for each in values for one in each)
        if any(len(each) != len(first) for each in values):
            raise UnlikeError("lists of other lengths")
        return type(first)(self(column) for column in zip(*values, strict=True))

    def _have_rows(self, values: Sequence[Any]) -> bool:
        """Whether each value is as long as its call has rows."""
        return all(len(value) == n for value, n in zip(values, self.rows, strict=True))


def parted(made: Any, rows: Sequence[int], *, listed: bool) -> list[Any]:
    """The result of a joined call as those of calls with so many rows.

    listed: whether rows are entries of lists. UnlikeError where it has no rows.
    """
    if isinstance(made, Tensor):
        if made.ndim == 0 or len(made) != sum(rows):
            raise UnlikeError(f"a result of {tuple(made.shape)} for {sum(rows)} rows")
        return _pieces(made, rows)
    if listed and isinstance(made, list) and len(made) == sum(rows):
        return _pieces(made, rows)
    if isinstance(made, Mapping):
        named = {name: parted(value, rows, listed=listed) for name, value in made.items()}
        return [type(made)(**{name: named[name][i] for name in named}) for i in range(len(rows))]
    if isinstance(made, tuple | list):
        entries = [parted(value, rows, listed=listed) for value in made]
        return [type(made)(column[i] for column in entries) for i in range(len(rows))]
    if made is None or isinstance(made, bool | int | float | str):
        return [made] * len(rows)
    raise UnlikeError(f"a result of type {type(made).__name__}")


def _pieces(made: Any, rows: Sequence[int]) -> list[Any]:
    # Not by `split`, whose views must not be written into where they have a graph.
    ends = accumulate(rows)
    return [made[end - n : end] for end, n in zip(ends, rows, strict=True)]


def close(made: Any, alone: Any) -> bool:
    """Whether two results are equal but for rounding."""
    some, others = tensors_in(made), tensors_in(alone)
    if len(some) != len(others):
        return False
    return all(_near(*pair) for pair in zip(some, others, strict=True))


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    share = TOLERANCE.get(one.dtype, 5e-2)
    largest = float(other.detach().abs().nan_to_num().max()) if other.numel() else 0.0
    atol = share * max(1.0, largest)
    return torch.allclose(one, other, atol=atol, rtol=share, equal_nan=True)
