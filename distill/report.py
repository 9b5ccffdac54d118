"""An evaluation as a table and as a plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ttsnap.distill.evaluate import Evaluation

from ttsnap.extras import install
from ttsnap.journal import write_whole

COLUMNS = {
    "spearman": "Spearman",
    "kendall": "Kendall",
    "top_accuracy": "best kept",
    "top_regret": "regret",
    "r2": "R2",
    "slope": "slope",
    "rmse": "RMSE",
}


def table(evaluation: Evaluation) -> str:
    """Markdown: a row per level and reward."""
    head = ["noise", "step", "reward", *COLUMNS.values()]
    body = [
        [f"{row['level']:.3f}", str(row["step"]), name, *(_number(row[name][key]) for key in COLUMNS)]
        for row in evaluation.rows
        for name in evaluation.names
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    rule = [":" + "-" * (w - 1) if i == 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [f"| {' | '.join(_cells(line, widths))} |" for line in (head, rule, *body)]
    kind = {True: "held-out prompts", False: "of the prompts trained on", None: "prompts"}[evaluation.held_out]
    count = f"{evaluation.prompts} {kind} x {evaluation.seeds} seeds"
    note = f"{count}; ranks within a prompt; best kept, regret: of a cut to the best quarter"
    return "\n".join([*lines, "", note])


def _cells(line: list[str], widths: list[int]) -> list[str]:
    return [cell.ljust(w) if i == 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]


def _number(value: Any) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def plot(evaluation: Evaluation, path: Path) -> None:
    """Spearman against the noise level, a line per reward. ValueError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"a plot needs matplotlib ({error}): {install('plot')}") from error
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    levels = [row["level"] for row in evaluation.rows]
    for name, style in zip(evaluation.names, ("o--", "o-", "s-", "^-", *["x-"] * len(evaluation.names)), strict=False):
        axes.plot(levels, [row[name]["spearman"] for row in evaluation.rows], style, label=name)
    axes.set_xlabel("noise level")
    axes.set_ylabel("rank correlation with the final reward")
    axes.set_ylim(top=1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, lambda file: figure.savefig(file, format="png"))
