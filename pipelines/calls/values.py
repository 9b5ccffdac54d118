"""Values that calls are given and make, nested in lists and dictionaries: walked, joined as one round,
compared and kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Generator, Tensor

# --- Values of calls as trees: mappings, lists and tuples, whose leaves are tensors or anything
# else
#     tensors_in([a, {"b": b}])              # [a, b]
#     mapped([a, {"b": b}], torch.clone)     # [a.clone(), {"b": b.clone()}]
#
# Arguments and results are compared, copied and known again by them.

STATELESS = (
    Tensor,
    Generator,
    bool,
    int,
    float,
    str,
    np.ndarray,
    np.generic,
    torch.dtype,
    torch.device,
)
"""Leaves that stay as they are from call to call."""
PLAIN = str | bool | int | float | None | torch.dtype | torch.device
"""Leaves that are known by what they are."""


def leaves(value: Any) -> Iterator[Any]:
    """The leaves of a value, in order."""
    if isinstance(value, Mapping):
        inside: Any = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    else:
        yield value
        return
    for each in inside:
        yield from leaves(each)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value, in order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def arrays_in(value: Any) -> list[Tensor]:
    """The tensors in a value and its arrays as tensors, in order."""
    found = []
    for leaf in leaves(value):
        if isinstance(leaf, np.ndarray):
            found.append(torch.from_numpy(leaf.copy()))  # changes in place of which nobody counts
        elif isinstance(leaf, Tensor):
            found.append(leaf)
    return found


def holds_memory(value: Any) -> bool:
    """Whether a leaf may be filled by a call for later ones, as a cache of keys and values is."""
    return any(leaf is not None and not isinstance(leaf, STATELESS) for leaf in leaves(value))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with all its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        inside = {name: mapped(each, change) for name, each in value.items()}
        return inside if type(value) is dict else type(value)(**inside)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, change) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    return value


def owned(value: Any) -> Any:
    """A copy of arguments, of which a stock call may change arrays in place, as Kandinsky does."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return list(map(owned, value))
    if isinstance(value, dict):
        return {name: owned(inside) for name, inside in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


# --- keys -----------------------------------------------------------------------------------------


def shape_of(value: Any) -> Hashable:
    """What calls of one batch agree in: types, and the shapes of tensors but for their rows."""
    return _key(value, _rows)


def size_of(value: Any) -> Hashable:
    """By what the shape of a result follows from a call: whole shapes, and whole numbers."""
    return _key(value, _size)


def identity_of(value: Any) -> Hashable:
    """A value but for the numbers in its arrays: plain leaves by what they are, others by who."""
    return _key(value, _identity)


def likeness_of(value: Any) -> Hashable:
    """A value but for the numbers in its arrays and pictures. TypeError for other objects."""
    return _key(value, _likeness)


def _key(value: Any, leaf: Callable[[Any], Hashable]) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((name, _key(inside, leaf)) for name, inside in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_key(each, leaf) for each in value)
    return leaf(value)


def _rows(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.dtype, leaf.shape[1:], leaf.ndim
    return (type(leaf),)


def _size(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    return type(leaf), leaf if isinstance(leaf, bool | int | str | None) else None


def _identity(leaf: Any) -> Hashable:
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(leaf)
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return type(leaf), leaf if isinstance(leaf, PLAIN) else id(leaf)


def _likeness(leaf: Any) -> Hashable:
    if isinstance(leaf, Image):
        return leaf.size, leaf.mode
    if not isinstance(leaf, PLAIN | Tensor | np.ndarray):
        raise TypeError(f"nothing tells what is in {type(leaf).__name__}")
    return _identity(leaf)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 where nothing counts that."""
    return 0 if tensor.is_inference() else tensor._version


# --- What one round of a loop steps, as the one tensor of a candidate -----------------------------
# Most loops step one tensor, which has one row. LTX-2 steps a video and its sound, each by a
# scheduler of its own. DiT steps two rows for one image.


@dataclass(frozen=True)
class Fields:
    """The tensors that a round steps, in order. They share noise levels, steps and kernel."""

    shapes: tuple[torch.Size, ...]
    """Of each, with its rows."""
    late: bool = False
    """Whether what the first ones' steps make may be written when the last one's is known, with all
    that was made of it since (between.py)."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.shapes)

    @property
    def plain(self) -> bool:
        """Whether they are one tensor with one row, which a search can take as it is."""
        return self.count == 1 and self.shapes[0][0] == 1

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """That tensor (1, ...), or the numbers of all of them (1, n)."""
        if self.plain:
            return values[0]
        return torch.cat([value.reshape(1, -1) for value in values], dim=1)

    def parted(self, x: Tensor) -> list[Tensor]:
        """The tensors of one that was joined."""
        if self.plain:
            return [x]
        ends = accumulate(shape.numel() for shape in self.shapes)
        # Not by `split`, whose views must not be written into where they have a graph.
        return [
            x[:, end - shape.numel() : end].reshape(shape)
            for end, shape in zip(ends, self.shapes, strict=True)
        ]


# --- Which tensors are equal, asked once for each of them while it lives unchanged ----------------
# Calls are joined where what has no rows is equal in all. A device is waited for to compare, so that
# embeddings and tables, which are the same objects from step to step, are not compared at each.


class Alike:
    """Whether two tensors are equal, to the last bit."""

    def __init__(self) -> None:
        self._kinds: dict[int, tuple[weakref.ref[Tensor], int, object]] = {}
        """By the id of a tensor: itself, its version then, and an object that equal ones share."""

    def __call__(self, one: Tensor, other: Tensor) -> bool:
        # a timestep is an entry of its scheduler's list
        base = one._base
        other_base = other._base
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
        kinds = self._kinds
        key = id(tensor)
        held = weakref.ref(tensor, lambda _: kinds.pop(key, None))
        kinds[key] = held, version_of(tensor), kind
        return kind


# --- What was made of arguments, made once for equal ones -----------------------------------------
# Frames of one prompt call the same encoders for the same texts and pictures. Embeddings may have
# hundreds of MB, so that they are shared, and compared where they are.


class Kept:
    """Results by what made them and by its arguments."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, list[_Entry]] = {}
        """By all but the numbers in arrays."""

    def of(self, what: Hashable, args: Any, kwargs: Any, make: Callable[..., Any]) -> Any:
        """What `make` makes of these arguments, in lists of its own: stock calls change those."""
        key = what, identity_of(args), identity_of(kwargs)
        entries = self._entries.setdefault(key, [])
        arrays = arrays_in((args, kwargs))
        found = next((entry for entry in entries if entry.is_of(arrays)), None)
        if found is None:
            made = make(*args, **kwargs)
            found = _Entry(made, (args, kwargs), arrays, list(map(version_of, arrays)))
            entries.append(found)
        return mapped(found.made, lambda tensor: tensor)


class _Entry(NamedTuple):
    made: Any
    arguments: Any
    """Held, since keys have their ids."""
    arrays: list[Tensor]
    """Those in them."""
    versions: list[int]

    def is_of(self, arrays: Sequence[Tensor]) -> bool:
        """Whether it was made of these numbers."""
        if self.versions != list(map(version_of, self.arrays)):
            return False
        return all(torch.equal(*pair) for pair in zip(self.arrays, arrays, strict=True))
