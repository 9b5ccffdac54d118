"""Search algorithms: one short file per family, each a frozen dataclass of hyperparameters (types.Algorithm)."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttsnap.algorithms.catalogue import ALGORITHMS, GROUPS, Entry
from ttsnap.types import Algorithm

__all__ = ["ALGORITHMS", "GROUPS", "Entry", "make_algorithm"]


def make_algorithm(spec: str | Algorithm | Mapping[str, Any], **options: Any) -> Algorithm:
    """A name of ALGORITHMS, a JSON file or mapping {"name": ..., **options}, or an Algorithm as it is.

    Options override the file's. Raises ValueError that lists the names, or the options that the algorithm has.
    """
    if not isinstance(spec, str | Mapping):
        return dataclasses.replace(spec, **options) if options else spec  # type: ignore[type-var]
    if isinstance(spec, str) and spec.endswith(".json"):
        spec = _read(Path(spec))
    if isinstance(spec, Mapping):
        options = {**{k: v for k, v in spec.items() if k != "name"}, **options}
        spec = str(spec.get("name", ""))
    if spec not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {spec!r}; choose one of {', '.join(ALGORITHMS)}, or a .json file")
    module, _, attr = ALGORITHMS[spec].where.partition(":")
    build = getattr(importlib.import_module(module), attr)
    try:
        return build(**options)  # type: ignore[no-any-return]
    except TypeError as error:
        known = list(inspect.signature(build).parameters)
        if set(options) - set(known):
            raise ValueError(f"{spec}: unknown option(s) {sorted(set(options) - set(known))}; it has {known}") from None
        raise ValueError(f"{spec}: cannot use options {options}: {error}") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        spec = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read algorithm file {path}: {error}") from None
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(f'algorithm file {path} must hold an object with a "name", got {str(spec)[:80]}')
    return spec
