"""The options of an algorithm, each with its default, what it means and where the default comes from.

They are read from the docstrings: a line that starts with the name of an option explains it, as do the indented
lines that follow; what stands in square brackets at the end is the source of the default.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias, get_type_hints

from ttsnap.algorithms.catalogue import ALGORITHMS
from ttsnap.core.names import load_object, unknown
from ttsnap.core.protocols import Algorithm

Builder: TypeAlias = Callable[..., Algorithm]
"""A class of algorithms, or a function that makes one with other defaults."""
START = re.compile(r"(\w+): (?=\S)(.*)")


class Option(NamedTuple):
    """`default` is `inspect.Parameter.empty` for an option that has to be given; `source` may be empty."""

    name: str
    default: Any
    text: str
    source: str = ""


def options_of(name: str) -> list[Option]:
    """The options of an algorithm of the catalogue, in their order.

    ValueError for an unknown name, and for an option that no docstring explains.
    """
    build = builder(name)
    defaults = _defaults(build)
    texts: dict[str, str] = {}
    for explained in reversed(_explained(build)):
        texts |= _paragraphs(inspect.getdoc(explained) or "")[1]
    if unexplained := [key for key in defaults if key not in texts]:
        raise ValueError(f"the docstring of {name} explains {', '.join(texts) or 'no option'}, but not "
                         f"{', '.join(unexplained)}; give each a line, '{unexplained[0]}: what it does.'")  # fmt: skip
    return [Option(key, value, *_split(texts[key])) for key, value in defaults.items()]


def about(name: str) -> str:
    """What else the docstring of an algorithm says, in paragraphs of one line each."""
    return _paragraphs(inspect.getdoc(builder(name)) or "")[0]


def builder(name: str) -> Builder:
    """The class or function that makes an algorithm. ValueError for an unknown name."""
    if name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, ALGORITHMS))
    build: Builder = load_object(ALGORITHMS[name].where)
    return build


def name_of(algorithm: Algorithm) -> str:
    """The name under which people know an algorithm; that of its class where the catalogue does not have it.

    Where several names make one class (svdd is a setting of CoDe), it is the one with the most options in common.
    """
    kind = type(algorithm)
    inside = [name for name, entry in ALGORITHMS.items() if entry.where.startswith(f"{kind.__module__}:")]
    names = [name for name in inside if _made(builder(name)) is kind]

    def others(name: str) -> int:
        return sum(value != vars(algorithm)[key] for key, value in vars(builder(name)()).items())

    return min(names, key=others) if len(names) > 1 else names[0] if names else kind.__name__


def as_written(default: object) -> str:
    """A default as one writes it on the command line, or in a file."""
    if isinstance(default, bool | str):
        return str(default)
    return json.dumps(spec_of(default) if isinstance(default, Algorithm) else default)


def spec_of(algorithm: Algorithm) -> dict[str, Any]:
    """An algorithm as one writes it in a file, which `make_algorithm` reads: its name, and the options that differ from
    their defaults. Options that are algorithms are written in the same way."""
    kind = type(algorithm)
    name = next((name for name, entry in ALGORITHMS.items() if entry.where == f"{kind.__module__}:{kind.__name__}"), "")
    defaults = _defaults(kind) if name else {}
    changed = {k: v for k, v in vars(algorithm).items() if k not in defaults or v != defaults[k]}
    options = {k: spec_of(v) if isinstance(v, Algorithm) else v for k, v in changed.items()}
    return {"name": name or kind.__name__, **options}


def takes(name: str, options: Iterable[str]) -> bool:
    """Whether an algorithm of the catalogue has all these options."""
    return name in ALGORITHMS and _defaults(builder(name)).keys() >= set(options)


def _explained(build: Builder) -> list[Builder]:
    """What to read about it: its own docstring first, then those of its bases, or of the class that it makes."""
    return list(dict.fromkeys([build, *_made(build).__mro__[:-1]]))


def _defaults(build: Builder) -> dict[str, Any]:
    """The options and their defaults; those of a class that a function passes on (**options) included."""
    given = inspect.signature(build).parameters
    defaults = {key: p.default for key, p in given.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    made = _made(build)
    if len(defaults) < len(given):
        defaults |= {key: p.default for key, p in inspect.signature(made).parameters.items() if key not in defaults}
    factories = {f.name: f.default_factory for f in dataclasses.fields(made)}
    empty = dataclasses.MISSING
    return {key: value if (make := factories.get(key, empty)) is empty else make() for key, value in defaults.items()}


def _made(build: Builder) -> type[Any]:
    """The class of the algorithm."""
    made: type[Any] = build if isinstance(build, type) else get_type_hints(build)["return"]
    return made


def _paragraphs(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring's prose, and what it says about each option; both without line breaks."""
    prose: list[str] = []
    texts: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", doc):
        # Lines of an option after its first are indented.
        joined = re.sub(r"\n\s+", " ", paragraph)
        lines = [START.match(line) for line in joined.splitlines()]
        if lines[0] is None:
            prose.append(" ".join(paragraph.split()))
        texts |= {match[1]: match[2] for match in lines if match is not None and lines[0] is not None}
    return "\n\n".join(prose), texts


def _split(text: str) -> tuple[str, str]:
    """A text without what stands in square brackets at its end, and that."""
    match = re.search(r"\s*\[([^][]+)\]\.?$", text)
    return (text[: match.start()].rstrip(".") + ".", match[1]) if match else (text, "")
