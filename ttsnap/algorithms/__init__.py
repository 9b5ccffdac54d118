"""Search algorithms: one short file per family, each a frozen dataclass of hyperparameters
(core.Algorithm)."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ttsnap.algorithms.catalogue import ALGORITHMS, GROUPS, Entry
from ttsnap.core.names import did_you_mean, load_object, unknown
from ttsnap.core.protocols import Adopting, Algorithm, Refining
from ttsnap.files import reading as files
from ttsnap.files.settings import Json, check, hints_of

__all__ = ["ALGORITHMS", "GROUPS", "Entry", "make_algorithm", "name_of", "own_algorithm", "spec_of"]
REQUIRED = dataclasses.MISSING
"""In place of the default of an option that has none."""
_PARTS = (Algorithm, Adopting, Refining)
"""The types of options that are algorithms themselves."""


def make_algorithm(spec: str | Algorithm | Mapping[str, object], **options: object) -> Algorithm:
    """A name of ALGORITHMS, a JSON file or mapping {"name": ..., **options}, or an Algorithm as it
    is.

    Options override the file's. A file is data: it names algorithms of ALGORITHMS and their options
    only, never other files. Raises ValueError that lists the names, or the options that the
    algorithm has, or their types.
    """
    if not isinstance(spec, str | Mapping):
        check("algorithm", spec, Algorithm)
        if not options:
            return spec
        known = [field.name for field in dataclasses.fields(spec)]  # type: ignore[arg-type]
        _refuse_unknown(type(spec).__name__, options, known)
        return dataclasses.replace(spec, **options)  # type: ignore[type-var]
    if isinstance(spec, str) and spec.endswith(".json"):
        spec = _read(Path(spec))
    if isinstance(spec, Mapping):
        options = {**{k: v for k, v in spec.items() if k != "name"}, **options}
        spec = str(spec.get("name", ""))
    kind = class_of(spec)
    defaults = defaults_of(spec)
    _refuse_unknown(spec, options, defaults)
    if "forecast" in defaults and "forecast" not in options:
        raise ValueError(
            f"{spec} needs a forecast of how scores develop with this model and reward: make one"
            " from a recording with `ttsnap tune RECORDING --policy price-of-compute --out priced.json`, and give"
            " priced.json as the algorithm"
        )
    entry = ALGORITHMS[spec]
    hints = hints_of(kind)
    settings: dict[str, Any] = dict(entry.fixed)
    for name, value in {**entry.defaults, **options}.items():
        field, _, inner = entry.renamed.get(name, name).partition(".")
        if inner:  # an option of a part, which is an algorithm itself and checks it
            settings[field] = {**settings[field], inner: value}
        elif hints[field] in _PARTS and isinstance(value, str | Mapping):
            # Of which the algorithm makes a part.
            settings[field] = value
        else:
            settings[field] = check(f"{spec}: {name}", value, hints[field])
    try:
        made: Algorithm = kind(**settings)
    except TypeError as error:  # a part without an option that it is given
        raise ValueError(f"{spec}: cannot use options {str(options)[:200]}: {error}") from None
    return made


def own_algorithm(text: str) -> str | Algorithm:
    """What a user of this machine typed, for `make_algorithm`: of file.py:Class, whose code is run,
    an object with the class's defaults. Texts from elsewhere, as those of a service, a graph or a
    file, never come here.

    ValueError where there is no such file or class, and where another module has the file's name.
    """
    place, _, name = text.rpartition(":")
    if not place.endswith(".py"):
        return text
    path = Path(place).resolve()
    if str(path.parent) not in sys.path:
        # also that of worker processes, to which algorithms are sent
        sys.path.append(str(path.parent))
    try:
        if not path.is_file():
            raise ImportError(f"no such file: {place}")
        module = importlib.import_module(path.stem)
        if module.__file__ is None or Path(module.__file__).resolve() != path:
            raise ImportError(f"another module has the name {path.stem}; rename {place}")
        if not hasattr(module, name):
            raise ImportError(f"{place} has no {name}{did_you_mean(name, vars(module))}")
        made = getattr(module, name)()
        if not isinstance(made, Algorithm) or not dataclasses.is_dataclass(made):
            raise TypeError(f"{name} must be a dataclass with n, needs, lockstep, init and step")
        return made
    except (ImportError, TypeError) as error:
        raise ValueError(f"cannot make algorithm {text!r}: {error}") from error


def _refuse_unknown(who: str, options: Iterable[str], known: Iterable[str]) -> None:
    if strange := sorted(set(options) - set(known)):
        meant = "".join(did_you_mean(name, known) for name in strange)
        raise ValueError(
            f"{who}: unknown option(s) {str(strange)[:200]}; it has {list(known)}{meant}"
        )


def class_of(name: str) -> type[Any]:
    """The class of an algorithm of the catalogue. ValueError for an unknown name."""
    if name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, ALGORITHMS, ", or a .json file"))
    kind: type[Any] = load_object(ALGORITHMS[name].where)
    return kind


def defaults_of(name: str) -> dict[str, Any]:
    """The options of an algorithm of the catalogue, each with its default, or REQUIRED."""
    kind = class_of(name)
    entry = ALGORITHMS[name]
    shown = {field: option for option, field in entry.renamed.items()}
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name not in entry.fixed:
            made = field.default if field.default_factory is REQUIRED else field.default_factory()
            defaults[shown.get(field.name, field.name)] = made
    return {**defaults, **entry.defaults}


def takes(name: str, options: Iterable[str]) -> bool:
    """Whether an algorithm of the catalogue has all these options."""
    return name in ALGORITHMS and defaults_of(name).keys() >= set(options)


def name_of(algorithm: Algorithm) -> str:
    """The name under which people know an algorithm; that of its class where the catalogue does not
    have it.

    Where several names make one class (svdd is a preset of CoDe), the one with the most options in
    common.
    """
    names = _names_of(type(algorithm))

    def others(name: str) -> int:
        return sum(
            value != vars(algorithm)[key] for key, value in vars(make_algorithm(name)).items()
        )

    if len(names) > 1:
        return min(names, key=others)
    if names:
        return names[0]
    return type(algorithm).__name__


def spec_of(algorithm: Algorithm) -> dict[str, Any]:
    """An algorithm as one writes it in a file, which `make_algorithm` reads: its name, and the
    options that differ from their defaults. Options that are algorithms are written in the same
    way."""
    kind = type(algorithm)
    name = next((name for name in _names_of(kind) if not ALGORITHMS[name].preset), "")
    defaults = defaults_of(name) if name else {}
    changed = {k: v for k, v in vars(algorithm).items() if k not in defaults or v != defaults[k]}
    options = {k: spec_of(v) if isinstance(v, Algorithm) else v for k, v in changed.items()}
    return {"name": name or kind.__name__, **options}


def _names_of(kind: type[Any]) -> list[str]:
    """The names of the catalogue that make this class."""
    return [
        name
        for name, entry in ALGORITHMS.items()
        if entry.where == f"{kind.__module__}:{kind.__name__}"
    ]


def _read(path: Path) -> Mapping[str, Json]:
    try:
        spec = files.read_json(path)
    except ValueError as error:
        raise ValueError(f"cannot read algorithm file {path}: {error}") from None
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(
            f'algorithm file {path} must hold an object with a "name", got {str(spec)[:80]}'
        )
    inside: list[Json] = list(spec.values())
    for value in inside:
        if isinstance(value, str) and value.endswith(".json"):
            raise ValueError(
                f"algorithm file {path} names another file, {value!r}; write that algorithm out"
                " in it"
            )
        inside += (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
    return spec
