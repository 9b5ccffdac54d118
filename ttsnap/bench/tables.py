"""A benchmark's summary in words: Markdown, whose columns also stand under each other in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ttsnap.bench.summary import Line

ABOUT = {"TFLOPs": ".4g", "seconds": ".2f"}
"""How numbers of costs are written; counts with one digit after the point."""


def main_tables(lines: Sequence[Line], title: str) -> str:
    """Means and costs of each algorithm, and below it how they differ from the first."""
    scores = list(lines[0].scores)
    costs = list(dict.fromkeys(name for line in lines for name in line.costs))
    means = [
        [line.name, *map(str, line.scores.values()), *(_cost(name, line.costs.get(name, 0.0)) for name in costs)]
        for line in lines
    ]
    text = f"{title}\n\n{markdown(['algorithm', *scores, *costs], means)}"
    if len(lines) > 1:
        rows = [[line.name, *map(str, line.differences.values())] for line in lines[1:]]
        text += f"\n\ndifference to {lines[0].name}, prompt by prompt:\n\n{markdown(['algorithm', *scores], rows)}"
    for line in lines:
        if line.failed:
            text += f"\n\n{line.name}: {line.failed} scores failed; the prompts without one are left out"
    return text


def category_tables(lines: Sequence[Line]) -> str:
    """For each score, a row a category and a column an algorithm; nothing where the set has no categories."""
    tables = []
    for score, kinds in lines[0].by_category.items():
        if kinds:
            head = ["category", "prompts", *(line.name for line in lines)]
            rows = [
                [kind or "(none)", str(first.prompts), *(str(line.by_category[score][kind]) for line in lines)]
                for kind, first in kinds.items()
            ]
            tables.append(f"{score} by category:\n\n{markdown(head, rows)}")
    return "\n\n".join(tables)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned, the first to the left."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    ruled = [cells[0], ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])], *cells[1:]]
    return "\n".join(
        "| " + " | ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]) + " |"
        for first, *rest in ruled
    )


def _cost(name: str, value: float) -> str:
    return format(value, ABOUT.get(name, ".1f"))
