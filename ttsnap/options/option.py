"""Declarations of options: fields of frozen dataclasses, made by `option`.

    batch_size: Count | None = option(None, "most candidates per denoiser call", metavar="N")

The type has the bounds: `Count` is a whole number from 1 on. The class is a `Settings`
(ttsnap.files.settings), which checks its values when it is made. `options_of` reads the
declarations back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_origin

from annotated_types import MaxLen

from ttsnap.files.settings import Json, Rule, hints_of, kinds_of, to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Spec: TypeAlias = Any
"""A text that names something (a kernel, a budget), or the object itself. Whoever takes it reads
and checks it."""
Options = TypeVar("Options")
Place = Annotated[
    str,
    Rule(
        "text of at most 1000 printable characters",
        lambda v: len(v) <= 1000 and v.isprintable() and v.strip() != "",
    ),
]
"""The name of something that is loaded, as a stranger's file may have it."""
MOST_NAMES = 16
"""Of one option, in such a file."""


@dataclass(frozen=True)
class Offered:
    """How strangers may write an option, over HTTP and at other doors. What is left out is as the
    option itself has it."""

    hint: Any = None
    """The type, with bounds."""
    text: str = ""
    """The words that explain it."""
    name: str = ""


@dataclass(frozen=True)
class Option:
    """The declaration of an option."""

    name: str
    """The argument in Python; "section.name" for one of a section."""
    default: Any
    text: str
    """What the option does, as `--help` prints it: without a capital and a full stop."""
    hint: Any = None
    """The type of the value, with bounds."""
    python: str = ""
    """Sentences for the documentation of the call."""
    shell: str = ""
    """Further words for `--help`."""
    unset: str = ""
    """What None means."""
    written: Any = None
    """The type on the command line and in files, by default `hint`; None where only Python has the
    option."""
    flag: str = ""
    """The name on the command line and in files, with _ for -."""
    start: Any = None
    """The default on the command line and in files."""
    metavar: str | None = None
    """The placeholder of the value in `--help`."""
    loads: str = ""
    """What the value makes ttsnap load, which a file from elsewhere must not decide: "reward",
    "likeness", "model", "address" (that ttsnap connects to) or "text" (for models to read)."""
    common: bool = False
    """Whether most people need the option, so that `--help` lists it; `--help-all` lists all."""
    recorded: bool = True
    """Whether `ttsnap record` has the option."""
    offered: Offered | None = None
    """How strangers may write it; None where they may not."""
    determines: bool = True
    """Whether another value gives another result, so that a run is not resumed with it."""

    @property
    def dashed(self) -> str:
        """The flag: --batch-size."""
        return f"--{self.flag.replace('_', '-')}"

    @property
    def help(self) -> str:
        """The words for `--help`."""
        unset = f" (default: {self.unset})" if self.unset else ""
        return "; ".join(part for part in (self.text, self.shell) if part) + unset

    @property
    def told(self) -> Any:
        """The type that the metadata of images has it in: what is loaded goes by its name."""
        if not self.loads:
            return self.written
        several = any(get_origin(kind) is list for kind in kinds_of(self.written))
        return Place | Annotated[list[Place], MaxLen(MOST_NAMES)] if several else Place

    @property
    def documented(self) -> str:
        """Sentences for the documentation of the call; the first follows the option's name."""
        unset = f"; by default {self.unset}" if self.unset else ""
        return f"{self.text}{unset}. {self.python}".strip()


def option(default: Any, text: str, **more: Any) -> Any:
    """A field with its default, and the other fields of its Option."""
    return dataclasses.field(default=default, metadata={"option": {"text": text, **more}})


def options_of(kind: type[Any], section: str = "") -> list[Option]:
    """The options that a class declares, in their order; those of a field that is such a class as
    "field.option"."""
    options: list[Option] = []
    for f in dataclasses.fields(kind):
        hint = hints_of(kind)[f.name]
        name = section + f.name
        if "option" in f.metadata:
            settings = {"flag": name, "written": hint, **f.metadata["option"]}
            options.append(Option(name, f.default, hint=hint, **settings))
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            options += options_of(hint, f"{name}.")
    return options


def values(settings: Any) -> dict[str, Any]:
    """The values of a settings object by name, not copied."""
    return {f.name: vars(settings)[f.name] for f in dataclasses.fields(settings)}


def named_beside(name: str, others: Collection[str]) -> str:
    """What an option is called beside other arguments: search_NAME where one of them is NAME."""
    return f"search_{name}" if name in others else name


def taken(kind: type[Options], arguments: dict[str, Any], beside: Collection[str] = ()) -> Options:
    """A settings object of the arguments that are its options, which are taken out of `given`.

    beside: the names of other arguments that may be given there.
    """
    names = {option.name: named_beside(option.name, beside) for option in options_of(kind)}
    return kind(**{name: arguments.pop(key) for name, key in names.items() if key in arguments})


def changed(settings: Any) -> list[str]:
    """The names of the options that are not at their defaults."""
    current = values(settings)
    return [
        option.name
        for option in options_of(type(settings))
        if not same(current[option.name], option.default)
    ]


def told(value: Any) -> Any:
    """A value for metadata: of an object the name of its class."""
    plain = value is None or isinstance(value, bool | int | float | str | list | tuple)
    return value if plain else type(value).__name__


def same(value: object, default: object) -> bool:
    """Whether a value is a default. Objects are compared by identity: tensors have no truth
    value."""
    plain = (bool, int, float, str, list, tuple, dict)
    return value is default or (
        isinstance(value, plain) and isinstance(default, plain) and value == default
    )


def determining(settings: DataclassInstance) -> dict[str, Json]:
    """The values of options that determine the result, for files."""
    skipped = [
        f.name
        for f in dataclasses.fields(settings)
        if not f.metadata.get("option", {}).get("determines", True)
    ]
    return {key: value for key, value in to_json(settings).items() if key not in skipped}
