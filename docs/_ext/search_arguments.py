"""`{search-arguments}`: what a search adds to a pipeline's call, from the declarations in
ttsnap/options/."""

from __future__ import annotations

from command_line import paragraph_of
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ttsnap.options.every import DECLARED


class SearchArguments(SphinxDirective):
    """A definition list: the argument, its option of `ttsnap generate` where it has one, and what
    it does."""

    def run(self) -> list[nodes.Node]:
        listed = nodes.definition_list()
        for option in DECLARED.values():
            term = nodes.term("", "", nodes.literal(text=option.name))
            if option.written is not None:
                term += [nodes.Text(" or "), nodes.literal(text=option.dashed)]
            text = nodes.definition("", paragraph_of(option.documented))
            listed += nodes.definition_list_item("", term, text)
        return [listed]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("search-arguments", SearchArguments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
