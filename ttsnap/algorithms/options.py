"""The options of an algorithm, each with its default, what it means and where the default comes
from.

A field of the algorithm's dataclass is explained by the docstring below it; what stands in square
brackets at the end of that is the source of the default.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from ttsnap.algorithms import ALGORITHMS, class_of, defaults_of, spec_of
from ttsnap.core.protocols import Algorithm


class AlgorithmOption(NamedTuple):
    """An option as help pages show it."""

    name: str
    default: Any
    """REQUIRED where it has to be given."""
    text: str
    source: str = ""
    """Where the default comes from; may be empty."""


def options_of(name: str) -> list[AlgorithmOption]:
    """The options of an algorithm of the catalogue, in their order.

    ValueError for an unknown name, and for an option that no docstring explains.
    """
    defaults = defaults_of(name)
    entry = ALGORITHMS[name]
    kind: Any = class_of(name)  # to mypy no class is hashable
    texts = {**field_texts(kind), **entry.texts}
    if unexplained := [key for key in defaults if key not in texts]:
        raise ValueError(
            f"{name} explains {', '.join(texts) or 'no option'}, but not {', '.join(unexplained)}; "
            f"write a docstring below the field {unexplained[0]}"
        )
    return [AlgorithmOption(key, value, *_split(texts[key])) for key, value in defaults.items()]


def about(name: str) -> str:
    """What else there is to know about an algorithm, in paragraphs of one line each."""
    text = ALGORITHMS[name].about or inspect.getdoc(class_of(name)) or ""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))


@cache
def field_texts(kind: type[Any]) -> Mapping[str, str]:
    """The docstrings below the fields of a class and its bases, by field, each in one line. Parsed
    once: a form of the demo asks for them at each search."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (written,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for field, below in pairwise(getattr(written, "body", ())):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return texts


def as_written(default: object) -> str:
    """A default as one writes it on the command line, or in a file."""
    if isinstance(default, bool | str):
        return str(default)
    return json.dumps(spec_of(default) if isinstance(default, Algorithm) else default)


def _split(text: str) -> tuple[str, str]:
    """A text without what stands in square brackets at its end, and that."""
    match = re.search(r"\s*\[([^][]+)\]\.?$", text)
    return (text[: match.start()].rstrip(".") + ".", match[1]) if match else (text, "")
