"""Names: the object that a text names, what to say of one that is not known, and the error that
names a field."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


class FieldError(ValueError):
    """A value that cannot be honoured. field: the one that it was given for."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)  # so that it travels between processes
        self.field = field

    def __str__(self) -> str:
        return str(self.args[1])


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, whatever the case, else the shortest that has
    all of its words; None where there is none."""
    by_letters = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold()[:80], by_letters, n=1, cutoff=0.65)
    if not near and (words := _words(name)):  # num_steps is short for num_inference_steps
        near = sorted([each for each in by_letters if words <= _words(each)], key=len)
    return by_letters[near[0]] if near else None


def _words(name: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", name.casefold()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: "; did you mean seed-pruning?", or nothing."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near is not None else ""


def unknown(what: str, name: object, known: Iterable[str], more: str = "") -> str:
    """A sentence that refuses a name and lists the known ones, `more` after them.

    For example "unknown algorithm 'svd'; did you mean svdd? Choose one of best-of-n, ..., or a
    .json file".
    """
    known = list(known)
    near = nearest(name, known) if isinstance(name, str) else None
    meant = f"did you mean {near}? Choose" if near is not None else "choose"
    return f"unknown {what} {name!r:.80}; {meant} one of {', '.join(known)}{more}"


def load_object(where: str) -> Any:
    """The object at "module:attribute" or "file.py:attribute". The module or file is imported, that
    is, executed; tables name classes as text, so that only what is used is imported.

    Raises ImportError where there is no such file, module or attribute. Callers say in their own
    words what was looked for.
    """
    place, _, attribute = where.rpartition(":")
    try:
        module = (
            _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except (AttributeError, OSError) as error:
        raise ImportError(str(error)) from error
    if not hasattr(module, attribute):
        raise ImportError(f"{place} has no {attribute}{did_you_mean(attribute, vars(module))}")
    return getattr(module, attribute)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
