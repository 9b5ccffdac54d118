"""Pages from outside docs/: notebooks are copied in for the build, and links that hold in the
repository are turned.

The links of README.md, CONTRIBUTING.md and the notebooks hold where these files lie; on the site
they lie elsewhere.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
COPIES = "notebooks"
README, LIMITS = re.compile(r"\]\(\.\./README\.md(#[\w-]*)?\)"), "#limits-so-far"
NOTEBOOK = re.compile(r"\[([^\[\]]+)\]\(([\w-]+\.ipynb)\)")


def copy_notebooks(app: Sphinx) -> None:
    """notebooks/*.ipynb and their pictures to docs/notebooks/, which git ignores; copies without an
    original go."""
    source, copies = ROOT / COPIES, Path(app.srcdir) / COPIES
    wanted = (
        [p for p in source.glob("*") if p.suffix in (".ipynb", ".png")] if source.is_dir() else []
    )
    names = {p.name for p in wanted}
    for old in copies.glob("*") if copies.is_dir() else []:
        if old.name not in names and old.suffix in (".ipynb", ".png"):
            old.unlink()
    for path in wanted:
        copies.mkdir(exist_ok=True)
        copy = copies / path.name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)


def turn_links(app: Sphinx, name: str, source: list[str]) -> None:
    """In notebooks, ../docs/ is .. here; a link to a notebook that is not there becomes plain
    text."""
    copies = Path(app.srcdir) / COPIES
    if name.startswith(f"{COPIES}/"):
        source[0] = source[0].replace("](../docs/", "](../")
        source[0] = README.sub(
            lambda m: "](../index.md" + (m[1] if m[1] == LIMITS else "") + ")", source[0]
        )
        source[0] = NOTEBOOK.sub(lambda m: m[0] if (copies / m[2]).exists() else m[1], source[0])
    elif name == "tutorials/index" and not any(copies.glob("*.ipynb")):
        # a glob that finds nothing is a warning
        source[0] = source[0].replace("/notebooks/*\n", "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", turn_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
