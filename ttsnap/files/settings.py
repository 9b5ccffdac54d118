"""Plain values held against declared types: the one check that files, flags, requests and calls go
through.

    check("steps", 0, Annotated[int, Ge(1)])  # FieldError: steps must be at least 1, got 0

A dataclass of settings declares types once, with the marks of annotated-types, and pydantic checks
them: a text is no number, neither are true and false, lists stand for tuples. `build` makes one of
plain values of YAML or JSON, `to_json` writes them back. Pydantic is imported by the first check.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, MaxLen

from ttsnap.core.names import FieldError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic_core import SchemaValidator, ValidationError

    Json: typing.TypeAlias = (
        bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
    )
    """A value that JSON can hold. What is read has lists and dictionaries; what is written may have
    tuples and mappings."""
else:
    Json = Any
S = TypeVar("S")
Scalar = TypeVar("Scalar", bool, int, float, str)


@dataclass(frozen=True)
class Rule:
    """What else a value must be, in words that follow "must be", and whether one is."""

    words: str
    fits: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, kind: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def held(value: object) -> object:
            if not self.fits(value):
                raise PydanticCustomError("rule", "Input should be {words}", {"words": self.words})
            return value

        return core_schema.no_info_after_validator_function(held, handler(kind))


Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Fraction = Annotated[float, Interval(gt=0, le=1)]
"""A share that is not nothing."""
Decay = Annotated[float, Interval(ge=0, lt=1)]
"""Of a running average: what is kept of it in each step."""
Port = Annotated[int, Interval(ge=0, le=65535)]
"""Of a server; 0 for any free one."""
Word = Annotated[str, MaxLen(200)]
"""A text that names something."""
Name = Annotated[str, MaxLen(100)]
"""The same of a stranger."""
Names = Name | Annotated[list[Name], MaxLen(64)]
"""One, or several."""

_STRICT: dict[object, dict[str, object]] = {
    **{kind: {"strict": True} for kind in ("bool", "int", "str")},
    "float": {"strict": True, "allow_inf_nan": False},
    **{kind: {"fail_fast": True} for kind in ("list", "tuple")},
    "dataclass-args": {"extra_behavior": "forbid"},
}
"""What the nodes of pydantic's schemas get by their types."""


@typing.overload
def check(name: str, value: object, hint: type[Scalar]) -> Scalar: ...
@typing.overload
def check(name: str, value: object, hint: object) -> Any: ...
def check(name: str, value: object, hint: object) -> object:
    """The value, once it fits its type: lists as tuples where a tuple is declared, whole numbers as
    floats.

    FieldError with the name, the value and what it must be.
    """
    validator = _validator(hint)
    from pydantic_core import ValidationError

    try:
        return validator.validate_python(value)
    except ValidationError as error:
        raise _refusal(error, name, value, hint) from None


@cache
def _validator(hint: Any) -> SchemaValidator:
    from pydantic import BaseModel, ConfigDict, TypeAdapter
    from pydantic_core import SchemaValidator

    own = dataclasses.is_dataclass(hint) or (isinstance(hint, type) and issubclass(hint, BaseModel))
    config = None if own else ConfigDict(arbitrary_types_allowed=True)
    return SchemaValidator(_strict(TypeAdapter(hint, config=config).core_schema))


def _strict(schema: Any) -> Any:
    """A schema in which lists stand for tuples and mappings for dataclasses, and nothing for
    anything else."""
    from pydantic_core import core_schema

    if isinstance(schema, list | tuple):
        return type(schema)(map(_strict, schema))
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: part if key in ("default", "metadata") else _strict(part)
        for key, part in schema.items()
    }
    kind = strict.get("type")
    strict |= _STRICT.get(kind, {})
    number: Any = strict  # mypy knows schemas by their keys
    return (
        core_schema.no_info_before_validator_function(_built_in, number)
        if kind in ("int", "float")
        else strict
    )


def _built_in(value: object) -> object:
    """A number of another library, as numpy's, as one of Python's."""
    if isinstance(value, Real) and not isinstance(value, int | float):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def _refusal(error: ValidationError, name: str, value: object, hint: object) -> FieldError:
    """What is said of the deepest fault, an unknown key before others: what must be there, what was
    got, what is near."""
    errors = error.errors(include_url=False)
    for each in errors:
        if each["type"] == "value_error":
            refused = each["ctx"]["error"]
            field = refused.field if isinstance(refused, FieldError) else name
            return FieldError(field, str(refused))
    places = [_place(name, value, each) for each in errors]
    at = max(range(len(errors)), key=lambda i: (_is_unknown(errors[i]), len(places[i])))
    first = errors[at]
    place = places[at]
    field = name or re.split(r"[.\[]", place)[0]
    if _is_unknown(first):
        known = _keys(hint, first["loc"][:-1])
        near = did_you_mean(str(first["loc"][-1]), known)
        return FieldError(field, f"{place} is unknown{near}; known are {', '.join(known)}")
    if first["type"] == "missing":
        return FieldError(field, f"{place} is missing")
    here = [each["msg"] for each, where in zip(errors, places, strict=True) if where == place]
    said = " or ".join(dict.fromkeys(re.sub(r"^\w+ should", "must", each) for each in here))
    said = said.replace(" or must be ", " or ")
    got = first["input"]
    near = did_you_mean(got, re.findall("'([^']*)'", said)) if isinstance(got, str) else ""
    return FieldError(field, f"{place or 'the settings'} {said}, got {short(got)}{near}")


def _is_unknown(error: Any) -> bool:
    return error["type"] in ("unexpected_keyword_argument", "extra_forbidden")


def _place(name: str, value: Any, error: Any) -> str:
    """The name of a value inside another: one.width, many[1]. Pydantic names branches of unions as
    well."""
    for part in error["loc"]:
        missing = error["type"] == "missing" and part == error["loc"][-1]
        if isinstance(value, list | tuple) and isinstance(part, int):
            name += f"[{part}]"
            value = None if missing else value[part]
        elif missing or (isinstance(value, Mapping) and part in value):
            name += f".{str(part).encode('unicode_escape').decode():.100}"
            value = None if missing else value[part]
        elif part == "[key]":
            name = f"key of {name.rpartition('.')[0]}"
    return name.removeprefix(".")


def _keys(hint: object, loc: Sequence[int | str]) -> list[str]:
    """The keys of a dataclass or of a pydantic model, at a place in others, and in lists and
    mappings of them."""
    for part in loc:
        if dataclasses.is_dataclass(hint):
            kinds = kinds_of(hints_of(hint)[str(part)])
            hint = next(kind for kind in kinds if kind is not type(None))
        else:
            hint = get_args(hint)[0 if isinstance(part, int) else 1]
    model: Any = hint
    return list(hints_of(hint) if dataclasses.is_dataclass(hint) else model.model_fields)


def kinds_of(hint: object) -> list[object]:
    """The types of a union without their marks, one by one; of any other type that alone."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    union = get_origin(kind) in (typing.Union, types.UnionType)
    return [part for each in get_args(kind) for part in kinds_of(each)] if union else [kind]


def short(value: object) -> str:
    """A value as messages show it."""
    text = repr(value[:81] if isinstance(value, list | tuple) else value)
    return text if len(text) <= 80 else text[:80] + "..."


def hints_of(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, with their marks."""
    return _hints_of(cls)


@cache
def _hints_of(cls: Any) -> dict[str, Any]:  # apart, as mypy does not know the hash of a class
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


class Settings:
    """Base of frozen dataclasses whose fields are checked when they are made. ValueError names the
    field."""

    def __post_init__(self) -> None:
        values = dict(vars(self))
        for name, hint in hints_of(type(self)).items():
            object.__setattr__(self, name, check(name, values[name], hint))


def build(cls: type[S], data: object, where: str = "") -> S:
    """Settings of this dataclass from plain values; those that are left out keep their defaults.

    where: what goes before a key in messages ("student."). FieldError for unknown keys, missing
    ones, and values of another type or out of bounds.
    """
    return typing.cast("S", check(where.rstrip("."), data, cls))


def to_json(settings: DataclassInstance) -> dict[str, Json]:
    """A dataclass as plain values: sections as dictionaries, tuples as lists. `build` reads it
    back."""
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
