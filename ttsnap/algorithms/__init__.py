"""Search algorithms: one short file per family, each a frozen dataclass of hyperparameters (core.Algorithm)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import get_type_hints

from ttsnap.algorithms.catalogue import ALGORITHMS, GROUPS, Entry
from ttsnap.algorithms.options import Builder
from ttsnap.core.names import did_you_mean, load_object, unknown
from ttsnap.core.protocols import Adopting, Algorithm, Refining
from ttsnap.files import reading as files
from ttsnap.files.settings import Json, check, hints_of

__all__ = ["ALGORITHMS", "GROUPS", "Entry", "make_algorithm"]
_PARTS = (Algorithm, Adopting, Refining)
"""The types of options that are algorithms themselves."""


def make_algorithm(spec: str | Algorithm | Mapping[str, object], **options: object) -> Algorithm:
    """A name of ALGORITHMS, a JSON file or mapping {"name": ..., **options}, or an Algorithm as it is.

    Options override the file's. A file is data: it names algorithms of ALGORITHMS and their options only, never other
    files. Raises ValueError that lists the names, or the options that the algorithm has, or their types.
    """
    if not isinstance(spec, str | Mapping):
        check("algorithm", spec, Algorithm)
        return dataclasses.replace(spec, **options) if options else spec  # type: ignore[type-var]
    if isinstance(spec, str) and spec.endswith(".json"):
        spec = _read(Path(spec))
    if isinstance(spec, Mapping):
        options = {**{k: v for k, v in spec.items() if k != "name"}, **options}
        spec = str(spec.get("name", ""))
    if spec not in ALGORITHMS:
        raise ValueError(unknown("algorithm", spec, ALGORITHMS, ", or a .json file"))
    build: Builder = load_object(ALGORITHMS[spec].where)
    hints = _hints(build)
    for key in options.keys() & hints.keys():
        if hints[key] not in _PARTS or not isinstance(options[key], str):  # a name, of which the algorithm makes one
            options[key] = check(f"{spec}: {key}", options[key], hints[key])
    try:
        return build(**options)
    except TypeError as error:
        known = list(inspect.signature(build).parameters)
        strange = sorted(set(options) - set(known))
        if strange:
            meant = "".join(did_you_mean(name, known) for name in strange)
            raise ValueError(f"{spec}: unknown option(s) {str(strange)[:200]}; it has {known}{meant}") from None
        if "forecast" in known and "forecast" not in options:
            raise ValueError(
                f"{spec} needs a forecast of how scores develop with this model and reward: make one from a recording "
                "with `ttsnap calibrate RECORDING --out priced.json`, and give priced.json as the algorithm"
            ) from None
        raise ValueError(f"{spec}: cannot use options {str(options)[:200]}: {error}") from None


def _hints(build: Builder) -> dict[str, object]:
    """The types of an algorithm's options; those of the class that it makes, too, where a function passes them on."""
    hints = get_type_hints(build, include_extras=True)
    made = hints.pop("return", None)
    return {**(hints_of(made) if isinstance(made, type) else {}), **hints}


def _read(path: Path) -> Mapping[str, Json]:
    try:
        spec = files.read_json(path)
    except ValueError as error:
        raise ValueError(f"cannot read algorithm file {path}: {error}") from None
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(f'algorithm file {path} must hold an object with a "name", got {str(spec)[:80]}')
    inside: list[Json] = list(spec.values())
    for value in inside:
        if isinstance(value, str) and value.endswith(".json"):
            raise ValueError(f"algorithm file {path} names another file, {value!r}; write that algorithm out in it")
        inside += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return spec
