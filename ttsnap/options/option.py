"""How an option is declared: as a field of a frozen dataclass, made by `option`, which says all about it in one place.

    batch_size: Count | None = option(None, "most candidates per denoiser call", metavar="N")

The type tells the bounds: `Count` is a whole number from 1 on. The class is a `Settings` (ttsnap.files.settings), which
checks its values when it is made. `options_of` reads the fields back. A value that may be a text or the object that the
text stands for (a kernel, a budget) is a `Spec`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ttsnap.files.settings import Json, hints_of, to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Spec: TypeAlias = Any
"""A text that names something, or the object itself. What takes it reads it, and refuses what it cannot read."""
Options = TypeVar("Options")


@dataclass(frozen=True)
class Option:
    """All that is known of an option."""

    name: str
    """Its argument in Python; "section.name" for one of a section."""
    default: Any
    text: str
    """What it does, without a capital and a full stop, as `--help` prints it."""
    hint: Any = None
    """The type of its value, with bounds."""
    python: str = ""
    """Sentences about it for the documentation of the call."""
    shell: str = ""
    """More for `--help`."""
    unset: str = ""
    """What None stands for."""
    written: Any = None
    """Its type on the command line and in files, by default `hint`; None where only Python can give it."""
    flag: str = ""
    """Its name there, with _ for -."""
    start: Any = None
    """Its default there."""
    metavar: str | None = None
    """What stands for its value in `--help`."""
    title: str = ""
    """What tables for people call it."""
    loads: str = ""
    """What its value makes ttsnap load, which a file from elsewhere must not decide: "reward" or "model"; "address"
    where ttsnap connects to it; "text" where it is for models to read."""
    common: bool = False
    """Whether most people need it, so that the page of `--help` has it; others are in `--help-all`."""
    recorded: bool = True
    """Whether `ttsnap record` has it."""
    noted: bool = False
    """Whether a recording with another kernel than the pipeline's own notes it even at its default."""
    many: bool = False
    """Whether several values may follow its flag."""
    determines: bool = True
    """Whether another value gives another result, so that a run refuses to go on with it."""

    @property
    def dashed(self) -> str:
        """As the command line has it: --batch-size."""
        return f"--{self.flag.replace('_', '-')}"

    @property
    def help(self) -> str:
        """For `--help`."""
        unset = f" (default: {self.unset})" if self.unset else ""
        return "; ".join(part for part in (self.text, self.shell) if part) + unset

    @property
    def documented(self) -> str:
        """For the documentation of the call, in sentences, of which the first goes on from the option's name."""
        unset = f"; by default {self.unset}" if self.unset else ""
        return f"{self.text}{unset}. {self.python}".strip()


def option(default: Any, text: str, **more: Any) -> Any:
    """A field with its default and the rest of its Option."""
    return dataclasses.field(default=default, metadata={"option": {"text": text, **more}})


def options_of(kind: type[Any], section: str = "") -> list[Option]:
    """The options that a class declares, in their order; those of a field that is such a class itself as
    "field.option". Other fields are none."""
    options: list[Option] = []
    for f in dataclasses.fields(kind):
        hint, name = hints_of(kind)[f.name], section + f.name
        if "option" in f.metadata:
            told = {"flag": name, "written": hint, **f.metadata["option"]}
            options.append(Option(name, f.default, hint=hint, **told))
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            options += options_of(hint, f"{name}.")
    return options


def values(given: Any) -> dict[str, Any]:
    """The values of an object of such a class by name, not copied."""
    return {f.name: vars(given)[f.name] for f in dataclasses.fields(given)}


def taken(kind: type[Options], given: dict[str, Any]) -> Options:
    """An object of this class from arguments of its options, which are taken out of `given`; others stay there."""
    names = [option.name for option in options_of(kind)]
    return kind(**{name: given.pop(name) for name in names if name in given})


def changed(given: Any) -> list[str]:
    """The names of the options that are not at their defaults."""
    current = values(given)
    return [option.name for option in options_of(type(given)) if not same(current[option.name], option.default)]


def same(value: object, default: object) -> bool:
    """Whether a value is a default. Those that are not plain are compared by identity: tensors have no truth value."""
    plain = (bool, int, float, str, list, tuple, dict)
    return value is default or (isinstance(value, plain) and isinstance(default, plain) and value == default)


def determining(given: DataclassInstance) -> dict[str, Json]:
    """The values of options on which the result depends, for files."""
    skipped = [f.name for f in dataclasses.fields(given) if not f.metadata.get("option", {}).get("determines", True)]
    return {key: value for key, value in to_json(given).items() if key not in skipped}
