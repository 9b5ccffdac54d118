"""The largest pictures that a model draws, known from its config files before anything is
loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttsnap.files.reading import read_object


def check_sides(config: Mapping[str, Any], scale: int, height: int, width: int) -> None:
    """ValueError for an image, in pixels, that is larger than the network's table of positions, if
    it has one.

    config: the network's. scale: pixels of a latent's side.
    """
    most = config.get("pos_embed_max_size")
    patch = config.get("patch_size")
    if (
        isinstance(most, int)
        and isinstance(patch, int)
        and max(height, width) > (pixels := most * patch * scale)
    ):
        raise ValueError(
            f"this model draws at most {pixels} x {pixels} pixels, got width {width} and height"
            f" {height}"
        )


def check_call_sides(folder: Path, call: Mapping[str, Any]) -> None:
    """The same for the call of a model in a folder."""
    net = folder / "transformer" / "config.json"
    vae = folder / "vae" / "config.json"
    if (
        net.is_file()
        and vae.is_file()
        and isinstance(blocks := read_object(vae).get("block_out_channels"), list)
    ):
        config = read_object(net)
        scale = 2 ** (len(blocks) - 1)
        own = size * scale if isinstance(size := config.get("sample_size"), int) else 0
        check_sides(config, scale, *(call.get(name) or own for name in ("height", "width")))
