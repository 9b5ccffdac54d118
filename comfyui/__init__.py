"""The nodes of an installed ttsnap, for ComfyUI: this folder, copied or linked into ComfyUI's
custom_nodes/."""

from __future__ import annotations

from pathlib import Path
from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls. ImportError, which it shows as it starts, where ttsnap is not
    installed."""
    try:
        from ttsnap.comfyui.nodes import nodes_of
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "ttsnap":
            raise
        raise ImportError(
            "these nodes need ttsnap in the Python that runs ComfyUI; README.md here says how"
        ) from error

    from comfy_api.latest import ComfyExtension

    offered = nodes_of(Path(__file__).with_name("rewards.json"))

    class Nodes(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            return offered

    return Nodes()
