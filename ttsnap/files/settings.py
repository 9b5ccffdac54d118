"""Settings as frozen dataclasses: built from plain values of YAML or JSON, held against types and bounds, written back.

A field says its type, and its bounds where it has any: `steps: Annotated[int, Bounds(1)] = 100`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, get_args, get_origin, get_type_hints

from ttsnap.files.plain_yaml import read_yaml
from ttsnap.files.typed import Json, typed
from ttsnap.files.writing import write_text

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S")


class OutOfBoundsError(ValueError):
    """A number that is not within the bounds of its field."""


@dataclass(frozen=True)
class Bounds:
    """What a number may be: from `low` to `high`, both included unless they are open."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def check(self, name: str, value: float) -> None:
        """OutOfBoundsError with the value where it is outside."""
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        if not (above and below):
            raise OutOfBoundsError(f"{name} must be {self}, got {value}")

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


Count = Annotated[int, Bounds(1)]
Natural = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(0, open_low=True)]
NotNegative = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
Decay = Annotated[float, Bounds(0, 1, open_high=True)]
"""Of a running average: what is kept of it in each step."""


class Bounded:
    """Base of settings that check their bounds when they are made. OutOfBoundsError names the field and its value."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            bounds, value = bounds_of(hint), getattr(self, name)
            if bounds is not None and value is not None:
                for number in value if isinstance(value, tuple) else (value,):
                    bounds.check(name, number)


def bounds_of(hint: object) -> Bounds | None:
    """The bounds in a type hint, or in one of the types of a union, as `Count | None`; None where it has none."""
    inner = get_args(hint)
    if get_origin(hint) is Annotated:
        return next((part for part in inner[1:] if isinstance(part, Bounds)), None)
    union = get_origin(hint) in (typing.Union, types.UnionType)
    return next((bounds for part in inner if (bounds := bounds_of(part)) is not None), None) if union else None


def build(cls: type[S], data: object, where: str = "") -> S:
    """Settings of this dataclass from plain values; those that are left out keep their defaults.

    where: what goes before a key in messages ("student."). ValueError for unknown keys, missing ones, and values of
    another type or out of bounds.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'the settings'} must hold keys and values, got {data!r:.80}")
    hints = get_type_hints(cls)
    unknown = [f"{where}{key}" for key in data if key not in hints]
    if unknown:
        known = ", ".join(where + key for key in hints)
        raise ValueError(f"unknown key(s) {', '.join(unknown):.300}; known are {known}")
    missing = [where + name for name in required(cls) if name not in data]
    if missing:
        raise ValueError(f"missing key(s) {', '.join(missing)}")
    values = {key: _value(where + key, value, hints[key]) for key, value in data.items()}
    try:
        return cls(**values)
    except OutOfBoundsError as error:
        raise OutOfBoundsError(f"{where}{error}") from None


def required(cls: type) -> list[str]:
    """The names of a dataclass's fields that have no default."""
    none = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is none and f.default_factory is none]


def _value(name: str, value: object, hint: typing.Any) -> object:
    """One field's value: of its type, a section of its own, or a tuple of sections."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, f"{name}.")
    item = get_args(hint)[0] if get_origin(hint) is tuple else None
    if isinstance(item, type) and dataclasses.is_dataclass(item) and isinstance(value, list | tuple):
        return tuple(build(item, part, f"{name}[{i}].") for i, part in enumerate(value))
    return typed(name, value, hint)


def to_json(settings: DataclassInstance) -> dict[str, Json]:
    """A dataclass as plain values: sections as dictionaries, tuples as lists. `build` reads it back."""
    return {key: plain(value) for key, value in dataclasses.asdict(settings).items()}


def load_settings(cls: type[S], path: Path) -> S:
    """Settings of this dataclass from a YAML file. ValueError that names the file for what cannot be read or does not
    fit, as `build` refuses it."""
    data = read_yaml(path, "configuration")
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no configuration: expected keys and values, got {data!r:.80}")
    try:
        return build(cls, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def save_settings(settings: DataclassInstance, path: Path) -> None:
    """Write a dataclass as YAML, whole or not at all. `load_settings` reads it back."""
    import yaml

    write_text(path, yaml.safe_dump(to_json(settings), sort_keys=False, allow_unicode=True))


def plain(value: object) -> Json:
    """Mappings as dictionaries of text keys, tuples as lists, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"settings hold numbers, texts, lists and dictionaries, got {value!r:.80}")


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """ValueError unless the value is one of these."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r:.80}; choose one of {', '.join(known)}")
