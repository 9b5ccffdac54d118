"""`{ttsnap-commands}`: a section for every command with its own --help, asked of the parsers as the site is built."""

from __future__ import annotations

import os
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ttsnap.cli import COMMANDS, build_parser

WIDTH = 100


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


class Commands(SphinxDirective):
    """One section for every command."""

    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for name, command in COMMANDS.items():
            section = nodes.section(ids=[f"ttsnap-{name}"], names=[f"ttsnap {name}"])
            section += nodes.title(text=f"ttsnap {name}")
            section += nodes.paragraph(text=f"{command.HELP[0].upper()}{command.HELP[1:]}.")
            section += nodes.literal_block(text=help_of(name), language="text")
            found.append(section)
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("ttsnap-commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
