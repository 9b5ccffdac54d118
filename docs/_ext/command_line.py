"""A page for every command, from its own --help, asked of the parsers as the site is built.

`{ttsnap-commands}` lists all commands with links; `{ttsnap-command} NAME` is what a page consists
of. The pages are written to docs/reference/commands/, which git ignores, so that a new command gets
one by itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ttsnap.cli import COMMANDS, build_parser

WIDTH = 100
PAGES = "reference/commands"


class Entry(NamedTuple):
    """An option as it is written, and what it does."""

    term: str
    text: str


class Help(NamedTuple):
    """A command's --help, taken apart: prose has one string a paragraph, sections their entries by
    title."""

    usage: str
    prose: list[str]
    examples: str
    sections: dict[str, list[Entry]]


def help_of(name: str) -> str:
    """What `ttsnap NAME --help` prints in a terminal of WIDTH columns, without colours."""
    before = {key: os.environ.get(key) for key in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1")
    try:
        parser = COMMANDS[name].parser() if name else build_parser()
        parser.prog = f"ttsnap {name}".strip()
        text = parser.format_help()
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
    return re.sub(r"\x1b\[[0-9;]*m|[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", "", text)


def read(text: str) -> Help:
    """Take a help text apart. A section is a line that ends in a colon and the lines below it that
    are indented."""
    found = Help("", [], "", {})
    usage, _, rest = text.partition("\n\n")
    found = found._replace(usage=usage.removeprefix("usage: "))
    for block in re.split(r"\n\s*\n", rest.strip("\n")):
        title, _, body = block.partition("\n")
        if re.fullmatch(r"examples?:", title):
            found = found._replace(examples="\n".join(line[2:] for line in body.splitlines()))
        elif re.fullmatch(r"[a-z][a-z ,]*:", title) and body.startswith("  "):
            found.sections[title[:-1]] = entries(body)
        else:
            found.prose.append(block)
    return found


def entries(body: str) -> list[Entry]:
    """The options of a section. What they do begins two spaces or more behind them, or on the next
    line."""
    found: list[Entry] = []
    for line in body.splitlines():
        start = re.match(r"  (\S.*?)(?:\s{2,}(\S.*))?$", line)
        if start and not line.startswith("   "):
            found.append(Entry(start[1], start[2] or ""))
        else:
            term, text = found.pop()
            found.append(Entry(term, f"{text} {line.strip()}".strip()))
    return found


class Command(SphinxDirective):
    """The help of one command: usage, prose, examples, and a section with a list for every group of
    options."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = read(help_of(self.arguments[0]))
        made: list[nodes.Node] = [nodes.literal_block(text=text.usage, language="text")]
        for paragraph in text.prose:
            aligned = any(line.startswith(" ") for line in paragraph.splitlines())
            literal = nodes.literal_block(text=paragraph, language="text")
            made.append(literal if aligned else paragraph_of(paragraph))
        if text.examples:
            made.append(
                _section("Examples", nodes.literal_block(text=text.examples, language="text"))
            )
        for title, options in text.sections.items():
            listed = nodes.definition_list(classes=["options"])
            for term, what in options:
                name = nodes.term("", "", nodes.literal(text=term))
                listed += nodes.definition_list_item(
                    "", name, nodes.definition("", paragraph_of(what))
                )
            made.append(_section(title.capitalize(), listed))
        return made


class Commands(SphinxDirective):
    """All commands, each with a line and a link to its page."""

    def run(self) -> list[nodes.Node]:
        listed = nodes.bullet_list()
        for name, command in COMMANDS.items():
            link = addnodes.pending_xref(
                "",
                refdomain="std",
                reftype="doc",
                reftarget=f"/{PAGES}/{name}",
                refexplicit=True,
                refdoc=self.env.docname,
                refwarn=True,
            )
            link += nodes.literal(text=f"ttsnap {name}")
            listed += nodes.list_item(
                "", nodes.paragraph("", "", link, nodes.Text(f": {command.help}"))
            )
        return [listed]


def paragraph_of(text: str) -> nodes.paragraph:
    """A paragraph in which options and what stands in backticks are code."""
    made = nodes.paragraph()
    for i, part in enumerate(re.split(r"(`[^`]+`|(?<![\w-])--[\w-]+(?:\.\w+)*)", text)):
        made += nodes.literal(text=part.strip("`")) if i % 2 else nodes.Text(part)
    return made


def _section(title: str, *inside: nodes.Node) -> nodes.section:
    return nodes.section(
        "", nodes.title(text=title), *inside, ids=[nodes.make_id(title)], names=[title.lower()]
    )


def write_pages(app: Sphinx) -> None:
    """A page for every command; pages of commands that are gone go, too."""
    folder = Path(app.srcdir) / PAGES
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        if old.stem not in COMMANDS:
            old.unlink()
    for name, command in COMMANDS.items():
        page, first = folder / f"{name}.md", f"{command.help[0].upper()}{command.help[1:]}."
        text = f"# ttsnap {name}\n\n{first}\n\n```{{ttsnap-command}} {name}\n```\n"
        if not page.is_file() or page.read_text() != text:
            page.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("ttsnap-command", Command)
    app.add_directive("ttsnap-commands", Commands)
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
