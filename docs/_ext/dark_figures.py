"""Figures in dark colours beside the ones for paper; the site shows the one that fits (only-light,
only-dark of furo).

Plots are drawn on white, as a README needs them. Their dark twins are made as the site is built:
every pixel keeps its hue and its colourfulness, its lightness is turned round, and black to white
becomes the site's dark background to its text. Nothing is drawn again, so the two show the same.
The pictures inside a contact sheet stay as they are; those of dropped candidates, which are faded
to white there, are faded to the background.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx

from ttsnap.results.sheet import CELL, FADED, HEAD, LEFT, MARGIN, ROW_GAP, TEXT_HEIGHT

FOLDER = "_dark"
BACKGROUND, TEXT = np.array([19.0, 20, 22]), np.array([230.0, 232, 235])
FIRST, PITCH = (HEAD, LEFT), (CELL + TEXT_HEIGHT + ROW_GAP, CELL + MARGIN)
"""Of a contact sheet with pictures of full size: where the first one begins (y, x), and how far
apart they are."""

Pixels = np.ndarray[Any, Any]


def dark_plot(paper: Pixels) -> Pixels:
    """(H, W, 3) uint8 on white to the same on dark."""
    values = paper.astype(float)
    turned = values + 255 - values.max(-1, keepdims=True) - values.min(-1, keepdims=True)
    found: Pixels = (BACKGROUND + turned / 255 * (TEXT - BACKGROUND)).round().astype(np.uint8)
    return found


def dark_sheet(paper: Pixels) -> Pixels:
    """The same for a contact sheet."""
    found = dark_plot(paper)
    for y in range(FIRST[0], paper.shape[0] - CELL + 1, PITCH[0]):
        for x in range(FIRST[1], paper.shape[1] - CELL + 1, PITCH[1]):
            here = (slice(y, y + CELL), slice(x, x + CELL))
            picture = paper[here].astype(float)
            if picture.min() > 250:
                continue  # nothing there
            if picture.min() >= 255 * FADED - 1:
                picture = picture - 255 * FADED + BACKGROUND * FADED
            found[here] = picture.round().clip(0, 255).astype(np.uint8)
    return found


FIGURES: dict[str, Callable[[Pixels], Pixels]] = {
    "drafts_curve.png": dark_plot,
    "embedded_curve.png": dark_plot,
    "sheet.png": dark_sheet,
    **{
        f"searches/{name}.png": dark_plot
        for name in ("seeds", "steps", "particles", "trees", "noise", "combined")
    },
}
"""By their path below docs/."""


def darken_of(name: str, page: str, paper: Pixels) -> Callable[[Pixels], Pixels] | None:
    """How to darken a figure, named by its path below docs/; None where it keeps a white card. Of
    notebooks plots are darkened, and pictures not."""
    if name in FIGURES:
        return FIGURES[name]
    white, colours = (paper.min(-1) >= 250).mean(), len(np.unique(paper.reshape(-1, 3), axis=0))
    return dark_plot if page.startswith("notebooks/") and white >= 0.6 and colours < 2000 else None


def show_twins(app: Sphinx, tree: nodes.document) -> None:
    """Put the dark twin behind every figure that gets one, before Sphinx collects images."""
    page, root = app.env.docname, Path(app.srcdir)
    for image in list(tree.findall(nodes.image)):
        source = Path(app.env.relfn2path(image["uri"], page)[1])
        if "only-dark" in image["classes"] or source.suffix != ".png" or not source.is_file():
            continue
        paper = np.asarray(Image.open(source).convert("RGB"))
        inside = source.is_relative_to(root)
        darken = darken_of(
            source.relative_to(root).as_posix() if inside else source.name, page, paper
        )
        if darken is None:
            continue
        twin = root / FOLDER / source.name
        twin.parent.mkdir(exist_ok=True)
        Image.fromarray(darken(paper)).save(twin)
        dark = image.copy()
        dark["classes"], dark["uri"] = (
            [*image["classes"], "only-dark"],
            os.path.relpath(twin, (root / page).parent),
        )
        image["classes"] = [*image["classes"], "only-light"]
        image.parent.insert(image.parent.index(image) + 1, dark)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    # Sphinx's own collector of images listens to doctree-read with priority 500.
    app.connect("doctree-read", show_twins, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
