"""Appends to reference/inner every module that no other page of the reference has, so that new ones are never lost."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

from sphinx.application import Sphinx

import ttsnap
import ttsnap.distill
import ttsnap.pipelines
import ttsnap.reward_models

PAGE = "reference/inner"
PACKAGES = (ttsnap, ttsnap.pipelines, ttsnap.reward_models, ttsnap.distill)


def modules() -> list[str]:
    """All modules in the rooms of the packages above, without those of programs and of the packaged worlds.

    Nor that which ComfyUI alone can import.
    """
    found = [
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.ispkg and not re.search(r"\.(_\w+|cli|demo|scenes|signs|custom|comfyui\.nodes)\b", module.name)
    ]
    return sorted(set(found))


def append(app: Sphinx, name: str, source: list[str]) -> None:
    """Sections for what is missing, as source-read asks for."""
    if name != PAGE:
        return
    pages = [p.read_text(encoding="utf-8") for p in Path(app.srcdir, "reference").glob("*.md")]
    known = {match for page in pages for match in re.findall(r"automodule:: (\S+)", page)}
    for module in modules():
        if module not in known:
            source[0] += f"\n## `{module}`\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
