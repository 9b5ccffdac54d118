"""`{support-matrix}`: what a search can do with each family, from the registry of pipelines."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from supported import markdown


class SupportMatrix(SphinxDirective):
    """The table."""

    def run(self) -> list[nodes.Node]:
        made = nodes.container()
        self.state.nested_parse(
            StringList(markdown().splitlines(), "support-matrix"), self.content_offset, made
        )
        return made.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("support-matrix", SupportMatrix)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
