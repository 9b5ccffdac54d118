"""`{modules}`: a section for each module that a page of the reference names; reference/inner has
all the others."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path

from sphinx.application import Sphinx

import ttsnap
import ttsnap.distill
import ttsnap.pipelines
import ttsnap.reward_models

PAGE = "reference/inner"
PACKAGES = (ttsnap, ttsnap.pipelines, ttsnap.reward_models, ttsnap.distill)


def modules() -> list[str]:
    """All modules in the rooms of the packages above, without those of programs and of the packaged
    worlds.

    Nor that which ComfyUI alone can import.
    """
    found = [
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.ispkg
        and not re.search(r"\.(_\w+|cli|demo|scenes|signs|custom|comfyui\.nodes)\b", module.name)
    ]
    return sorted(set(found))


BLOCK = re.compile(r"^```\{modules\}\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def sections(names: Iterable[str]) -> str:
    """What autodoc reads."""
    return "\n".join(
        f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
        for name in names
    )


def expand(app: Sphinx, name: str, source: list[str]) -> None:
    """Sections in the place of names, and for what is missing, as source-read asks for."""
    if name == PAGE:
        pages = "\n".join(
            p.read_text(encoding="utf-8") for p in Path(app.srcdir, "reference").glob("*.md")
        )
        known = {
            *re.findall(r"automodule:: (\S+)", pages),
            *"\n".join(BLOCK.findall(pages)).split(),
        }
        source[0] += "\n" + sections(module for module in modules() if module not in known)
    source[0] = BLOCK.sub(lambda block: sections(block[1].split()), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", expand)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
