"""How an option is declared: as a field of a frozen dataclass, made by `option`, which says all about it in one place.

    batch_size: Count | None = option(None, "most candidates per denoiser call", metavar="N")

`Count` is a whole number from 1 on: the type tells the bounds (ttsnap.files.settings). `options_of` reads the fields of
such a class back. A value that may be a text or the object that the text stands for (a kernel, a budget) is a `Spec`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, get_type_hints

from ttsnap.files.settings import Bounds, bounds_of

Spec: TypeAlias = Any
"""A text that names something, or the object itself. What takes it reads it, and refuses what it cannot read."""
Options = TypeVar("Options")


@dataclass(frozen=True)
class Option:
    """All that is known of an option.

    name: its argument in Python. text: what it does, without a capital and a full stop, as `--help` prints it. python:
    sentences about it for the documentation of the call; shell: more for --help. unset: what None stands for.
    written: its type on the command line and in files, by default that of the field; None where only Python can give
    it. flag: its name there, with _ for -, start: its default there, metavar: what stands for its value in --help.
    bounds: of a number, from the type. loads: "reward" or "model" where its value makes ttsnap load something
    that the value names, which a file from elsewhere must not decide, "address" where ttsnap connects to it; "text"
    where it is for models to read.
    common: whether most people need it, so that the page of `--help` has it; others are in `--help-all`.
    recorded: whether `ttsnap record` has it. noted: whether a recording with another kernel than the pipeline's own
    notes it even at its default.
    """

    name: str
    default: Any
    text: str
    python: str = ""
    shell: str = ""
    unset: str = ""
    written: Any = None
    flag: str = ""
    start: Any = None
    metavar: str | None = None
    bounds: Bounds | None = None
    loads: str = ""
    common: bool = False
    recorded: bool = True
    noted: bool = False

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


def options_of(kind: type[Any]) -> list[Option]:
    """The options that a class declares, in their order."""
    types, bounded = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    options = []
    for f in dataclasses.fields(kind):
        told = {"flag": f.name, "written": types[f.name], "bounds": bounds_of(bounded[f.name]), **f.metadata["option"]}
        options.append(Option(f.name, f.default, **told))
    return options


def values(given: Any) -> dict[str, Any]:
    """The values of an object of such a class by name, not copied."""
    return {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}


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
