"""A benchmark's summary as a picture: for each score the means, and beside them how they differ from the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttsnap.bench.summary import Estimate, Line
from ttsnap.files.writing import write_whole


def draw(path: Path, lines: Sequence[Line]) -> None:
    """Write a PNG. ImportError without matplotlib."""
    from matplotlib.figure import Figure

    scores, names = list(lines[0].scores), [line.name for line in lines]
    columns = 2 if len(lines) > 1 else 1
    figure = Figure(figsize=(5.2 * columns, len(scores) * (0.9 + 0.32 * len(lines))), layout="constrained")
    grid = figure.subplots(len(scores), columns, squeeze=False)
    for score, row in zip(scores, grid, strict=True):
        _points(row[0], names, [line.scores[score] for line in lines])
        row[0].set_xlabel(f"{score}, mean ± standard error over prompts")
        if columns > 1:
            _points(row[1], names[1:], [line.differences[score] for line in lines[1:]], first=1)
            row[1].axvline(0, color="0.45", linewidth=1)
            row[1].set_xlabel(f"{score}, difference to {names[0]}, prompt by prompt")
            row[1].set_yticks(range(len(names)), [])
            row[1].set_ylim(*row[0].get_ylim())
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=160))


def _points(axes: Any, names: Sequence[str], estimates: Sequence[Estimate], first: int = 0) -> None:
    """A point with its error for each name, the first on top; first: the place of the first one, which colours it."""
    for place, estimate in enumerate(estimates, first):
        error = 0.0 if estimate.error != estimate.error else estimate.error
        color = "0.35" if place == 0 else f"C{(place - 1) % 10}"
        axes.errorbar(estimate.mean, place, xerr=error, fmt="o", color=color, capsize=3, markersize=5, linewidth=1.6)
    axes.set_yticks(range(first, first + len(names)), names)
    axes.set_ylim(first + len(names) - 0.5, -0.5)
    axes.grid(color="0.92", linewidth=0.8, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
