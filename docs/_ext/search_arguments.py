"""`{search-arguments}`: what a search adds to a pipeline's call, from the text that ends its docstring."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from ttsnap.pipelines.arguments import SEARCH_ARGUMENTS


def arguments() -> list[tuple[str, str]]:
    """(names, explanation) of each, in order."""
    found = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", SEARCH_ARGUMENTS, re.M)
    return [(names, " ".join(text.split())) for names, text in found]


class SearchArguments(SphinxDirective):
    """A definition list."""

    def run(self) -> list[nodes.Node]:
        listed = nodes.definition_list()
        for names, text in arguments():
            term = nodes.term("", "", nodes.literal(text=names))
            listed += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph(text=text)))
        return [listed]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("search-arguments", SearchArguments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
