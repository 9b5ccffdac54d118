"""`ttsnap algorithms`: the algorithms to choose from for --algorithm, and the options of each."""

from __future__ import annotations

import json
import shutil
import textwrap

from ttsnap.algorithms import ALGORITHMS, GROUPS, REQUIRED
from ttsnap.algorithms.options import AlgorithmOption, about, as_written, options_of
from ttsnap.cli.parser import Arguments, Parser

DESCRIPTION = """List the search algorithms, or the options of one with their defaults and sources.

examples:
  ttsnap algorithms
  ttsnap algorithms svdd
"""
NAME = 20
INDENT = "  "


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    p.add_argument("name", nargs="?", type=str | None, help="one of them (default: list all)")
    return p


def run(a: Arguments) -> int:
    """Print the list, or all about one algorithm."""
    width = min(shutil.get_terminal_size().columns, 100)
    print(grouped(width) if a.name is None else algorithm_in_full(a.name, width))
    return 0


def algorithm_lines() -> str:
    """Every algorithm in a line."""
    return "\n".join(_line(name) for name in ALGORITHMS)


def grouped(width: int = 80) -> str:
    """The same by group, under what its members have in common."""
    blocks = []
    for group, title in GROUPS.items():
        members = [_line(name) for name, entry in ALGORITHMS.items() if entry.group == group]
        blocks.append("\n".join([*textwrap.wrap(title, width), *members]))
    blocks.append("ttsnap algorithms NAME shows what one needs, its options and its source.")
    return "\n\n".join(blocks)


def _line(name: str) -> str:
    return f"{INDENT}{name:<{NAME}}{ALGORITHMS[name].summary}"


def algorithm_in_full(name: str, width: int = 80) -> str:
    """What an algorithm does, needs and is from, its options, and a command to try. ValueError for
    an unknown name."""
    options = options_of(name)  # loads the algorithm's module, and refuses a name that is not there
    entry = ALGORITHMS[name]
    lines = [f"{name}: {entry.title}", f"{entry.summary[0].upper()}{entry.summary[1:]}.", ""]
    for paragraph in about(name).split("\n\n"):
        lines += [*textwrap.wrap(paragraph, width), ""]
    facts = {"needs": entry.needs, "source": entry.source}
    lines += [
        line
        for label, text in facts.items()
        if text
        for line in _column(f"{label}:", text, 8, width, "")
    ]
    lines += ["", "options (--options.NAME VALUE):"]
    column = max(len(option.name) for option in options) + 4
    for option in options:
        lines += _column(option.name, f"{option.text}{_default(option)}", column, width, INDENT)
    lines += ["", "example:", f"{INDENT}{_example(name, entry.needs)}"]
    if any(option.default is REQUIRED for option in options):
        return "\n".join(lines)  # its file is made by the command that the option names
    numbers = {
        option.name: option.default for option in options if isinstance(option.default, int | float)
    }
    shown = "n" if any(option.name == "n" for option in options) else next(iter(numbers), "n")
    given = {shown: numbers.get(shown, 16)}
    lines += [
        "",
        "as a file, for --algorithm FILE.json:",
        f"{INDENT}{json.dumps({'name': name, **given})}",
    ]
    return "\n".join(lines)


def _column(label: str, text: str, column: int, width: int, indent: str) -> list[str]:
    """A label, and on the same line a text that begins at `column`."""
    first = f"{indent}{label}".ljust(column)
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * column,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _default(option: AlgorithmOption) -> str:
    """A sentence about the default and its source; where the default is None, the option's text
    explains it."""
    if option.default is REQUIRED:
        return " Has to be given."
    source = (
        f" ({'our choice' if option.source == 'ours' else option.source})" if option.source else ""
    )
    return source if option.default is None else f" Default: {as_written(option.default)}{source}."


def _example(name: str, needs: str) -> str:
    """A command that runs it on the embedded model."""
    words = ["ttsnap generate", '"two red circles"', f"--algorithm {name}"]
    if name == "price-of-compute":
        words[-1] = "--algorithm priced.json"
    if "draws noise" in needs or "path" in needs:
        words.append("--kernel sde")
    if "noise-aware" in needs:
        words.append("--reward scenes-noise-aware")
    if "differentiable" in needs:
        words.append("--reward scenes-learned")
    return " ".join(words)
