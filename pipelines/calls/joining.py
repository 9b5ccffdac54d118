"""Calls of one network by several frames as one call, and its result as theirs.

    calls = [((), {"sample": (2, 4, 8, 8), "timestep": ()}), ...]    # of two frames
    joined(calls)                                                     # {"sample": (4, 4, 8, 8), "timestep": ()}

A value with a row for each of a call's rows is concatenated. What has none must be equal in all calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from ttsnap.pipelines.calls.questions import PartCall

INPUTS = ("hidden_states", "sample", "x", "z")
"""What networks and decoders call the argument whose first axis is that of their rows."""
PLAIN = (Tensor, Generator, bool, int, float, str, np.ndarray, np.generic, torch.dtype, torch.device)
"""Arguments that stay as they are from call to call."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a joined result may be from that of a call alone, as a share of the largest value."""


class UnlikeError(ValueError):
    """Calls that cannot be one."""


class Arguments(NamedTuple):
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
        return Arguments(call.args, call.kwargs).rows
    except UnlikeError:
        return 1


class Alike:
    """Whether two tensors are equal, which waits for the device once for each of them while it lives unchanged."""

    def __init__(self) -> None:
        self._kinds: dict[int, tuple[weakref.ref[Tensor], int, object]] = {}
        """Equal tensors have one object, by their ids."""

    def __call__(self, one: Tensor, other: Tensor) -> bool:
        base, other_base = one._base, other._base  # a timestep is an entry of its scheduler's list
        if one.numel() == 1 and base is not None and other_base is not None:
            here = one.storage_offset() == other.storage_offset()
            if here and self._same(base, other_base):
                return True
        return self._same(one, other)

    def _same(self, one: Tensor, other: Tensor) -> bool:
        kind = self._kind(other)
        if kind is self._kind(one):
            return True
        if one.shape != other.shape or one.dtype != other.dtype or not torch.equal(one, other):
            return False
        self._keep(one, kind)
        return True

    def _kind(self, tensor: Tensor) -> object:
        known = self._kinds.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] != version_of(tensor):
            return self._keep(tensor, object())
        return known[2]

    def _keep(self, tensor: Tensor, kind: object) -> object:
        kinds, key = self._kinds, id(tensor)
        self._kinds[key] = weakref.ref(tensor, lambda _: kinds.pop(key, None)), version_of(tensor), kind
        return kind


def version_of(tensor: Tensor) -> int:
    """How often it was changed in place; 0 where nothing counts that."""
    return 0 if tensor.is_inference() else tensor._version


def joined(
    calls: Sequence[Arguments], *, aligned: bool, equal: Callable[[Tensor, Tensor], bool] = torch.equal
) -> Arguments:
    """One call of several. aligned: whether all frames are at one index, and so at one timestep.

    UnlikeError where they differ in what has no rows.
    """
    rows, listed = [call.rows for call in calls], isinstance(calls[0].input, list)
    if len({(len(call.args), tuple(call.kwargs)) for call in calls}) > 1:
        raise UnlikeError("calls with other arguments")

    def join(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return _tensors(values, rows, equal, aligned=aligned)
        if isinstance(first, Generator):  # most decoders take one and draw nothing; of others a trial differs
            return first.clone_state()
        if isinstance(first, dict):
            if any(not isinstance(each, dict) or each.keys() != first.keys() for each in values):
                raise UnlikeError("dicts with other names")
            return {name: join([each[name] for each in values]) for name in first}
        if isinstance(first, list | tuple) and first and all(type(each) is type(first) for each in values):
            return _lists(values, rows if listed else None, join)
        if any(each is not first and each != first for each in values):
            raise UnlikeError(f"values without rows that differ, as {first!r:.40}")
        return first

    args = tuple(join(column) for column in zip(*(call.args for call in calls), strict=True))
    return Arguments(args, {name: join([call.kwargs[name] for call in calls]) for name in calls[0].kwargs})


def _tensors(
    values: Sequence[Tensor], rows: Sequence[int], equal: Callable[[Tensor, Tensor], bool], *, aligned: bool
) -> Tensor:
    first = values[0]
    if any(not isinstance(each, Tensor) or shape_of(each) != shape_of(first) for each in values):
        raise UnlikeError("tensors of other shapes")
    if first.ndim and all(len(each) == n for each, n in zip(values, rows, strict=True)):
        return torch.cat(list(values))
    if first.numel() == 1 and first.ndim < 2 and not aligned:  # a timestep for all rows of a call
        return torch.cat([each.expand(n) for each, n in zip(values, rows, strict=True)])
    if any(each is not first and not equal(each, first) for each in values):
        raise UnlikeError("tensors without rows that differ")
    return first


def _lists(values: Sequence[Any], rows: Sequence[int] | None, join: Callable[[Sequence[Any]], Any]) -> Any:
    """rows: of the calls, where they are entries of lists; else each entry is joined with the others in its place."""
    first = values[0]
    if rows is not None and all(len(each) == n for each, n in zip(values, rows, strict=True)):
        return type(first)(one for each in values for one in each)
    if any(len(each) != len(first) for each in values):
        raise UnlikeError("lists of other lengths")
    return type(first)(join(column) for column in zip(*values, strict=True))


def parted(made: Any, rows: Sequence[int], *, listed: bool) -> list[Any]:
    """The result of a joined call as those of calls with so many rows. listed: whether rows are entries of lists.

    UnlikeError where it has no rows.
    """
    if isinstance(made, Tensor):
        if made.ndim == 0 or len(made) != sum(rows):
            raise UnlikeError(f"a result of {tuple(made.shape)} for {sum(rows)} rows")
        return list(made.split(list(rows)))
    if listed and isinstance(made, list) and len(made) == sum(rows):
        ends = torch.tensor(rows).cumsum(0).tolist()
        return [made[end - n : end] for end, n in zip(ends, rows, strict=True)]
    if isinstance(made, Mapping):
        named = {name: parted(value, rows, listed=listed) for name, value in made.items()}
        return [type(made)(**{name: named[name][i] for name in named}) for i in range(len(rows))]
    if isinstance(made, tuple | list):
        each = [parted(value, rows, listed=listed) for value in made]
        return [type(made)(column[i] for column in each) for i in range(len(rows))]
    if made is None or isinstance(made, bool | int | float | str):
        return [made] * len(rows)
    raise UnlikeError(f"a result of type {type(made).__name__}")


def shape_of(value: Any) -> Any:
    """What calls of one batch agree in: the shapes of tensors but for their rows, and what holds them."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape[1:], value.ndim
    if isinstance(value, Mapping):
        return tuple((name, shape_of(inside)) for name, inside in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(shape_of, value))
    return type(value)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value, in order."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in inside for tensor in tensors_in(one)]


def holds_memory(value: Any) -> bool:
    """Whether a value is, or holds, an object of its own kind, as a cache of keys and values that a network fills."""
    if isinstance(value, Mapping):
        return any(map(holds_memory, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_memory, value))
    return not (value is None or isinstance(value, PLAIN))


def close(made: Any, alone: Any) -> bool:
    """Whether two results are equal but for rounding."""
    pairs = list(zip(tensors_in(made), tensors_in(alone), strict=False))
    return len(tensors_in(made)) == len(tensors_in(alone)) and all(_near(*pair) for pair in pairs)


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    share = TOLERANCE.get(one.dtype, 5e-2)
    most = max(1.0, float(other.detach().abs().nan_to_num().max())) if other.numel() else 1.0
    return torch.allclose(one, other, atol=share * most, rtol=share, equal_nan=True)
