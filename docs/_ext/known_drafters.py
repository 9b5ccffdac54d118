"""`{known-drafters}`: published few-step weights that have a name, from the table of the code."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HEAD = (
    "draft",
    "for",
    "weights",
    "steps",
    "strength",
    "calls",
    "first time",
    "guidance",
    "level",
    "the card's sampler",
)


def markdown() -> str:
    """The table."""
    from ttsnap.pipelines.drafting.known_drafters import KNOWN

    rows = [HEAD, ("---",) * len(HEAD)]
    for name, k in KNOWN.items():
        guidance = "none" if k.guidance is None else f"{k.guidance:g}"
        numbers = (
            f"{k.steps}",
            f"{k.scale:g}",
            f"{k.calls}",
            f"{k.first_time:g}",
            guidance,
            f"{k.level:g}",
        )
        rows.append((f"`{name}`", k.base, f"`{k.where}`", *numbers, k.card))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class KnownDrafters(SphinxDirective):
    """The table as it is in the code."""

    def run(self) -> list[nodes.Node]:
        made = nodes.container()
        self.state.nested_parse(
            StringList(markdown().splitlines(), "known-drafters"), self.content_offset, made
        )
        return made.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("known-drafters", KnownDrafters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
