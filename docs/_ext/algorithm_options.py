"""`{algorithm-options} NAME ...`: the options of algorithms, from the docstrings below their
fields, as a table.

`ttsnap algorithms NAME` prints the same text. Of the second algorithm and those after it, the table
has what differs from the first: options that the first lacks, and other defaults.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from command_line import paragraph_of
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ttsnap.algorithms import REQUIRED
from ttsnap.algorithms.options import AlgorithmOption, as_written, options_of

HEAD = ("option", "what it does", "by default", "from")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


class Line(NamedTuple):
    """An option with its default and its source in each algorithm that has it under the same
    explanation."""

    name: str
    text: str
    defaults: dict[str, str]
    sources: dict[str, str]


def lines_of(names: list[str]) -> list[Line]:
    """The lines of the table. ValueError for an unknown algorithm."""
    found: dict[tuple[str, str], Line] = {}
    for name in names:
        for option in options_of(name):
            line = found.setdefault(
                (option.name, option.text), Line(option.name, option.text, {}, {})
            )
            line.defaults[name] = default_of(option)
            line.sources[name] = re.sub(r"^ours\b", "our choice", option.source)
    return list(found.values())


def default_of(option: AlgorithmOption) -> str:
    """In the words of Markdown; nothing where the text says what None stands for."""
    if option.default is REQUIRED:
        return "has to be given"
    return "" if option.default is None else f"`{as_written(option.default)}`"


def by_algorithm(values: dict[str, str]) -> str:
    """The first algorithm's value, and those of others that differ from it."""
    first, *rest = values.items()
    found = [first[1]] if first[1] else []
    return "; ".join(
        [*found, *(f"{name}: {value}" for name, value in rest if value not in ("", first[1]))]
    )


class AlgorithmOptions(SphinxDirective):
    """A table with a row for each option."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        names = self.arguments[0].split()
        table, group, head, body = (
            nodes.table(),
            nodes.tgroup(cols=len(HEAD)),
            nodes.thead(),
            nodes.tbody(),
        )
        group += [nodes.colspec(colwidth=width) for width in (12, 50, 16, 22)]
        head += row([nodes.paragraph(text=title) for title in HEAD])
        for line in lines_of(names):
            body += row(
                [
                    of_which(line, names),
                    paragraph_of(line.text),
                    paragraph_of(by_algorithm(line.defaults)),
                    linked(by_algorithm(line.sources)),
                ]
            )
        group += [head, body]
        table += group
        return [table]


def row(cells: list[nodes.paragraph]) -> nodes.row:
    """A row of a table."""
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))


def of_which(line: Line, names: list[str]) -> nodes.paragraph:
    """The option's name, and those of the algorithms that have it where the first does not."""
    made = nodes.paragraph("", "", nodes.literal(text=line.name))
    if names[0] not in line.defaults:
        made += nodes.Text(f" ({', '.join(line.defaults)})")
    return made


def linked(text: str) -> nodes.paragraph:
    """A paragraph in which papers on arXiv are links."""
    made = nodes.paragraph()
    for i, part in enumerate(ARXIV.split(text)):
        made += (
            nodes.reference(text=f"arXiv {part}", refuri=f"https://arxiv.org/abs/{part}")
            if i % 2
            else nodes.Text(part)
        )
    return made


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("algorithm-options", AlgorithmOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
