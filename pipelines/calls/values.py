"""Values of calls as trees: mappings, lists and tuples, whose leaves are tensors or anything else.

    tensors_in([a, {"b": b}])              # [a, b]
    mapped([a, {"b": b}], torch.clone)     # [a.clone(), {"b": b.clone()}]

Arguments and results are compared, copied and known again by them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Generator, Tensor

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
