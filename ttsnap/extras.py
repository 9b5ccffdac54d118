"""How to install what only some uses of ttsnap need. ttsnap is on no package index, but what its
extras name is."""

from __future__ import annotations

import importlib.metadata
import shlex


def install(extra: str) -> str:
    """The command that installs what an extra of ttsnap (demo, rewards, ...) stands for, as its
    metadata says."""
    lines = [line.partition(";") for line in importlib.metadata.requires("ttsnap") or ()]
    needed = [
        name.strip()
        for name, _, marker in lines
        if f"extra == '{extra}'" in marker.replace('"', "'")
    ]
    return f"pip install {shlex.join(needed)}"
