"""Objects by where they are: tables name classes as text, so that only what is asked for is imported."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any


def load_object(where: str) -> Any:
    """The object at "module:attribute" or "file.py:attribute". The module or file is imported, that is, executed.

    Raises ImportError where there is no such file, module or attribute. Callers say in their own words what was asked.
    """
    place, _, attribute = where.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        return getattr(module, attribute)
    except (AttributeError, OSError) as error:
        raise ImportError(str(error)) from error


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
