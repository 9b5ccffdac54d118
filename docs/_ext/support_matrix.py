"""`{support-matrix}`: what a search can do with each family, and what it refuses, from the registries of pipelines."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from supported import markdown, refusals


class SupportMatrix(SphinxDirective):
    """The table, and below it a list of what is refused where there is something."""

    def run(self) -> list[nodes.Node]:
        made = nodes.container()
        text = f"{markdown()}\n\n{refusals()}"
        self.state.nested_parse(StringList(text.splitlines(), "support-matrix"), self.content_offset, made)
        return made.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("support-matrix", SupportMatrix)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
