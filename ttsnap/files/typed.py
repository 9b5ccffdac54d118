"""Values of files and command lines, held against the types that the code declares for them."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin, overload

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""A value that JSON can hold. What is read has lists and dictionaries; what is written may have tuples and mappings."""

_FITS: dict[object, tuple[type, ...]] = {bool: (bool,), int: (Integral,), float: (Real, str), str: (str,)}


Scalar = TypeVar("Scalar", bool, int, float, str)


@overload
def typed(name: str, value: object, hint: type[Scalar]) -> Scalar: ...
@overload
def typed(name: str, value: object, hint: object) -> Any: ...
def typed(name: str, value: object, hint: object) -> object:
    """The value as its type hint says, where that loses nothing; ValueError with its name and value elsewhere.

    Lists become tuples where a tuple is declared. YAML reads 1e-4 as text, so that a number may be a text; it must be
    finite. Mappings, and objects of the declared class, stay as they are.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [kind for kind in inner if kind is not type(None)]
        if value is None and len(kinds) < len(inner):
            return None
        return typed(name, value, next((kind for kind in kinds if _is(value, kind)), kinds[0]))
    if origin is tuple and isinstance(value, list | tuple):
        several = inner[1:] == (Ellipsis,)
        if not several and len(value) != len(inner):
            raise ValueError(f"{name} must be {len(inner)} values, got {_short(value)}")
        return tuple(typed(f"{name}[{i}]", item, inner[0 if several else i]) for i, item in enumerate(value))
    if origin is Literal and any(value is known or value == known for known in inner):
        return value
    fits = isinstance(value, _FITS.get(hint, ())) and (hint is bool or not isinstance(value, bool))
    if isinstance(hint, type) and fits:
        try:
            converted = hint(value)
        except (ValueError, OverflowError):
            converted = math.nan
        if hint is not float or math.isfinite(converted):
            return converted
        raise ValueError(f"{name} must be a finite number, got {_short(value)}")
    if hint is Any or (hint not in _FITS and origin not in (tuple, Literal) and not _plain(value)):
        return value
    raise ValueError(f"{name} must be {_wanted(hint)}, got {_short(value)}")


def _wanted(hint: object) -> str:
    """What a type asks for, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        named = {int: "whole numbers", float: "numbers", str: "texts", bool: "true and false"}.get(inner[0], "values")
        return f"a list of {named}" if inner[1:] == (Ellipsis,) else f"{len(inner)} {named}"
    return f"of type {hint.__name__ if isinstance(hint, type) else str(hint).replace('typing.', '')}"


def _is(value: object, kind: object) -> bool:
    """Whether a value is of one kind of a union already."""
    if kind in _FITS:
        return isinstance(value, _FITS[kind]) and not (isinstance(value, str) and kind is float)
    return get_origin(kind) is tuple and isinstance(value, list | tuple)


def _plain(value: object) -> bool:
    """Whether it is a value of JSON other than an object."""
    return value is None or (
        isinstance(value, bool | int | float | str | list | tuple) and not isinstance(value, Mapping)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
