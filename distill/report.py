"""An evaluation as a table and as a plot."""

from __future__ import annotations

import math
from pathlib import Path

from ttsnap.distill.evaluate import Evaluation
from ttsnap.extras import install
from ttsnap.files.writing import markdown, write_whole

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
    """A Markdown table with a row for each noise level and reward."""
    head = ["noise", "step", "reward", *COLUMNS.values()]
    body = []
    for row in evaluation.rows:
        for name in evaluation.names:
            numbers = [_number(row[name][key]) for key in COLUMNS]
            body.append([f"{row['level']:.3f}", str(row["step"]), name, *numbers])
    lines = markdown(head, body, left=(2,))
    kind = "held-out prompts" if evaluation.held_out else "of the prompts trained on"
    count = f"{evaluation.prompts} {kind} x {evaluation.seeds} seeds"
    note = f"{count}; ranks within a prompt; best kept, regret: of a cut to the best quarter"
    return f"{lines}\n\n{note}"


def usage(evaluation: Evaluation) -> str:
    """A sentence: at which noise levels the exported reward uses the trained network, and why not
    at others."""
    below = evaluation.base_below
    base, student = evaluation.names
    left = [row for row in evaluation.rows if row["level"] <= below]
    if not left:
        why = (
            ""
            if evaluation.held_out
            else ", as no prompt was held out to compare it with the base on"
        )
        return f"{student} uses what was trained at every noise level{why}"
    last = max(left, key=lambda row: float(row["level"]))
    ranks = (
        f"at {last['level']:.3f}: {_number(last[base]['spearman'])}, against"
        f" {_number(last['unused']['spearman'])}"
    )
    if len(left) == len(evaluation.rows):
        return (
            f"{student} uses what was trained at no noise level, and scores as {base} does: {base}"
            " ranks the held-out estimates as well or better at every level measured (Spearman"
            f" {ranks} of what was trained). Train on more prompts, for longer, or with another"
            " student"
        )
    return (
        f"{student} uses what was trained above noise {below:.3f}. Up to there it scores as {base}"
        f" does, which ranks the held-out estimates as well or better (Spearman {ranks} of what was"
        " trained)"
    )


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def plot(evaluation: Evaluation, path: Path) -> None:
    """Plot Spearman against the noise level, a line for each reward. ValueError where matplotlib is
    not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"a plot needs matplotlib ({error}): {install('plot')}") from error
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    levels = [row["level"] for row in evaluation.rows]
    for name, style in zip(
        evaluation.names, ("o--", "o-", "s-", "^-", *["x-"] * len(evaluation.names)), strict=False
    ):
        axes.plot(levels, [row[name]["spearman"] for row in evaluation.rows], style, label=name)
    axes.set_xlabel("noise level")
    axes.set_ylabel("rank correlation with the final reward")
    axes.set_ylim(top=1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, lambda file: figure.savefig(file, format="png"))
