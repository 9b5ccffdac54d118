"""Plain values held against declared types: the one check that files, flags, requests and calls go through.

    check("steps", 0, Annotated[int, Bounds(1)])  # ValueError: steps must be at least 1, got 0

A dataclass of settings declares types once. `build` makes it of plain values of YAML or JSON, `to_json` writes them
back. This file is in the lowest room, as recordings, rewards and algorithms read values as options do.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, ForwardRef, Literal, TypeVar, get_args, get_origin, get_type_hints

from ttsnap.core.names import did_you_mean, unknown

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Json: typing.TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""A value that JSON can hold. What is read has lists and dictionaries; what is written may have tuples and mappings."""
S = TypeVar("S")
Scalar = TypeVar("Scalar", bool, int, float, str)


@dataclass(frozen=True)
class Bounds:
    """What a number may be, or each of a list: from `low` to `high`, both included unless they are open."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    __is_annotated_types_grouped_metadata__: ClassVar[bool] = True  # by which pydantic reads it

    def __iter__(self) -> Iterator[object]:
        from annotated_types import Ge, Gt, Le, Lt

        yield Gt(self.low) if self.open_low else Ge(self.low)
        if not math.isinf(self.high):
            yield Lt(self.high) if self.open_high else Le(self.high)

    def fits(self, value: Any) -> bool:
        """Whether it, or all that a list holds, is within."""
        if isinstance(value, list | tuple):
            return all(map(self.fits, value))
        above = self.low < value if self.open_low else self.low <= value
        return bool(above and (value < self.high if self.open_high else value <= self.high))

    def __str__(self) -> str:
        low, high = (str(x) if isinstance(x, int) else f"{x:g}" for x in (self.low, self.high))
        if math.isinf(self.high):
            return f"above {low}" if self.open_low else f"at least {low}"
        joint = [["to", "to below"], ["and at most", "and below"]][self.open_low][self.open_high]
        return f"{'above' if self.open_low else 'from'} {low} {joint} {high}"


@dataclass(frozen=True)
class Size:
    """How many characters a text has, how many values a list or a mapping."""

    high: int
    low: int = 0
    __is_annotated_types_grouped_metadata__: ClassVar[bool] = True

    def __iter__(self) -> Iterator[object]:
        from annotated_types import Len

        yield Len(self.low, self.high)

    def fits(self, value: Any) -> bool:
        """Whether there are no more and no fewer."""
        return self.low <= len(value) <= self.high

    def __str__(self) -> str:
        return f"{f'{self.low} to ' if self.low else 'at most '}{self.high:,}"


@dataclass(frozen=True)
class Rule:
    """What else a value must be, in words that follow "must be", and whether one is."""

    words: str
    fits: Callable[[Any], bool]

    def __str__(self) -> str:
        return self.words


Count = Annotated[int, Bounds(1)]
Natural = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(0, open_low=True)]
NotNegative = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
Decay = Annotated[float, Bounds(0, 1, open_high=True)]
"""Of a running average: what is kept of it in each step."""
Word = Annotated[str, Size(200)]
"""A text that names something."""

_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Any: "a value",
}
_SEVERAL: dict[object, str] = {bool: "true and false", int: "whole numbers", float: "numbers", str: "texts"}


@typing.overload
def check(name: str, value: object, hint: type[Scalar]) -> Scalar: ...
@typing.overload
def check(name: str, value: object, hint: object) -> Any: ...
def check(name: str, value: object, hint: object) -> object:
    """The value, once it fits its type: lists as tuples where a tuple is declared, whole numbers as floats.

    A text is no number, and neither are true and false. Objects of a class pass as they are, and so do mappings in
    their place. ValueError with the name, the value and what it must be.
    """
    kind, marks = bare(hint)
    inner = get_args(kind)
    if _is_union(kind):
        kind, marks = bare(next((each for each in inner if _fits(value, each)), hint))
        inner = get_args(kind)
    if get_origin(kind) is Literal and value not in inner:
        where, colon, last = name.rpartition(": ")
        raise ValueError(f"{where}{colon}{unknown(last, value, list(map(str, inner)))}")
    # Sizes first: of a list that is too long, no item is looked at.
    if not _fits(value, kind) or not all(mark.fits(value) for mark in marks if isinstance(mark, Size)):
        raise ValueError(f"{name} must be {words(hint)}, got {short(value)}")
    checked = _inside(name, value, kind, inner)
    for mark in marks:
        if not mark.fits(checked):
            must = mark if isinstance(mark, Bounds) else words(hint)
            raise ValueError(f"{name} must be {must}, got {short(checked)}")
    return checked


def _inside(name: str, value: Any, kind: object, inner: tuple[Any, ...]) -> object:
    """A value of this kind with all that it holds checked, and converted where nothing is lost."""
    if isinstance(value, list | tuple) and get_origin(kind) in (tuple, list, Sequence):
        fixed = get_origin(kind) is tuple and inner[1:] != (Ellipsis,)
        if fixed and len(value) != len(inner):
            raise ValueError(f"{name} must be {len(inner)} values, got {short(value)}")
        items = (check(f"{name}[{i}]", item, inner[i if fixed else 0]) for i, item in enumerate(value))
        return list(items) if isinstance(value, list) and get_origin(kind) is not tuple else tuple(items)
    if isinstance(value, Mapping) and get_origin(kind) in (dict, Mapping):
        return {check(f"key of {name}", k, inner[0]): check(f"{name}.{k}", v, inner[1]) for k, v in value.items()}
    if kind is float:
        number = float(value) if not isinstance(value, int) or abs(value) < 2**1023 else math.inf
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {short(value)}")
        return number
    return int(value) if kind is int else value


def bare(hint: object) -> tuple[object, tuple[Bounds | Size | Rule, ...]]:
    """A type without its marks, and these."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    kind, *marks = get_args(hint)
    return kind, tuple(mark for mark in marks if isinstance(mark, Bounds | Size | Rule))


def kinds_of(hint: object) -> list[object]:
    """The types of a union without their marks, one by one; of any other type that alone."""
    kind, _ = bare(hint)
    return [part for each in get_args(kind) for part in kinds_of(each)] if _is_union(kind) else [kind]


def words(hint: object) -> str:
    """What a type asks for, as it follows "must be"."""
    kind, marks = bare(hint)
    inner, origin = get_args(kind), get_origin(kind)
    if _is_union(kind):
        return " or ".join(dict.fromkeys(map(words, (each for each in inner if each is not type(None)))))
    if found := next((mark for mark in marks if isinstance(mark, Rule)), None):
        return found.words
    if origin is Literal:
        said = f"one of {', '.join(map(str, inner))}"
    elif origin is tuple and inner[1:] != (Ellipsis,):
        said = f"{len(inner)} {_SEVERAL.get(bare(inner[0])[0], 'values')}"
    elif origin in (tuple, list, Sequence):
        said = f"a list of {_SEVERAL.get(bare(inner[0])[0], 'values')}"
    elif origin in (dict, Mapping):
        said = "keys and values"
    else:
        said = _WORDS.get(kind, f"of type {kind.__name__ if isinstance(kind, type) else kind}")
    for mark in marks:
        if isinstance(mark, Size):
            said += f" of {mark} {'characters' if kind is str else 'values'}"
        else:
            said += f" of {mark}" if str(mark).startswith("at ") else f" {mark}"
    return said


def _fits(value: object, hint: object) -> bool:
    """Whether a value is of a type, whatever it holds inside."""
    kind, _ = bare(hint)
    origin = get_origin(kind)
    if kind is Any or isinstance(kind, ForwardRef):
        return True
    if origin is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind in (bool, str, type(None)):
        return isinstance(value, typing.cast("type", kind))
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if _is_union(kind):
        return any(_fits(value, each) for each in get_args(kind))
    return value is not None and not isinstance(value, bool | int | float | str | list | tuple)


def _is_union(kind: object) -> bool:
    return get_origin(kind) in (typing.Union, types.UnionType)


def short(value: object) -> str:
    """A value as messages show it."""
    text = repr(value[:81] if isinstance(value, list | tuple) else value)
    return text if len(text) <= 80 else text[:80] + "..."


def hints_of(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their marks."""
    found: Any = cls  # whose hash mypy does not know
    return _hints_of(found)


@cache
def _hints_of(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


class Settings:
    """Base of frozen dataclasses whose fields are checked when they are made. ValueError names the field."""

    def __post_init__(self) -> None:
        given = dict(vars(self))
        for name, hint in hints_of(type(self)).items():
            object.__setattr__(self, name, check(name, given[name], hint))


def build(cls: type[S], data: object, where: str = "") -> S:
    """Settings of this dataclass from plain values; those that are left out keep their defaults.

    where: what goes before a key in messages ("student."). ValueError for unknown keys, missing ones, and values of
    another type or out of bounds.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'the settings'} must hold keys and values, got {data!r:.80}")
    hints, none = hints_of(cls), dataclasses.MISSING
    if strange := [f"{where}{key}" for key in data if key not in hints]:
        known = [where + key for key in hints]
        meant = did_you_mean(strange[0], known)
        raise ValueError(f"unknown key(s) {', '.join(strange):.300}{meant}; known are {', '.join(known)}")
    needed = [f.name for f in dataclasses.fields(typing.cast("Any", cls)) if f.default is f.default_factory is none]
    if missing := [where + name for name in needed if name not in data]:
        raise ValueError(f"missing key(s) {', '.join(missing)}")
    return cls(**{key: _built(where + key, value, hints[key]) for key, value in data.items()})


def _built(name: str, value: object, hint: Any) -> object:
    """One field's value: of its type, a section of its own, or a tuple of sections."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, f"{name}.")
    item = get_args(hint)[0] if get_origin(hint) is tuple else None
    if isinstance(item, type) and dataclasses.is_dataclass(item) and isinstance(value, list | tuple):
        return tuple(build(item, part, f"{name}[{i}].") for i, part in enumerate(value))
    return check(name, value, hint)


def to_json(settings: DataclassInstance) -> dict[str, Json]:
    """A dataclass as plain values: sections as dictionaries, tuples as lists. `build` reads it back."""
    return {key: plain(value) for key, value in dataclasses.asdict(settings).items()}


def plain(value: object) -> Json:
    """Mappings as dictionaries of text keys, tuples as lists, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"settings hold numbers, texts, lists and dictionaries, got {value!r:.80}")
