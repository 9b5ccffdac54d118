"""A pack of nodes for tests: the embedded model, which ComfyUI's own loaders cannot read.

Linked into a folder `custom_nodes`, and imported by ComfyUI alone: `ttsnap` must be installed where it runs.
"""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    from .nodes import ToyNodes

    return ToyNodes()
