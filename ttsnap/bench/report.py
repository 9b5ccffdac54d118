"""The report of a benchmark: a line an image, tables, a chart, and the lists that scorers read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttsnap.bench.folder import Found, OpenBench
from ttsnap.bench.layout import RESULTS, SUMMARY, image_path, write_lists
from ttsnap.bench.run import Bench, Foreseen
from ttsnap.bench.summary import Line, MeanOverPrompts, summarize
from ttsnap.core.cost import KINDS
from ttsnap.core.utility import rank_sum
from ttsnap.files.settings import Json, to_json
from ttsnap.files.writing import markdown, write_json, write_text, write_whole

ABOUT = {"TFLOPs": ".4g", "seconds": ".2f"}
"""Formats of costs. Counts have one digit after the point."""


def title_of(bench: Bench) -> str:
    """The line above the tables."""
    prompts = len(bench.prompts)
    repeats = bench.options.repeats
    each = f"{prompts} prompt{'s' * (prompts > 1)} x {repeats} image{'s' * (repeats > 1)}"
    pot = ", shared" if bench.search.shared else ""
    each += f", a budget of {bench.search.budget} each{pot}"
    return f"{each}; ± is the standard error over prompts, costs are per image"


def write_report(bench: Bench, there: OpenBench) -> tuple[str, bool]:
    """Write all files; the tables to print, and whether there is a chart, which takes
    matplotlib."""
    found = _in_order(bench, there)
    lines = lines_of(bench, there)
    tables = main_tables(lines, title_of(bench))
    _write_results(bench, there, found)
    for arm in bench.arms:
        write_lists(there.folder, arm.folder, bench.prompts, bench.options.repeats)
    summary: dict[str, Json] = {
        "prompts": len(bench.prompts),
        "repeats": bench.options.repeats,
        "budget": str(bench.search.budget),
        "shared": bench.search.shared,
        "first": lines[0].name,
        "algorithms": [line.to_json() for line in lines],
    }
    write_json(there.folder / f"{SUMMARY}.json", summary)
    more = category_tables(lines)
    write_text(there.folder / f"{SUMMARY}.md", tables + (f"\n\n{more}" if more else "") + "\n")
    try:
        draw(there.folder / f"{SUMMARY}.png", lines)
    except ImportError:
        return tables, False
    return tables, True


def lines_of(bench: Bench, there: OpenBench) -> list[Line]:
    """A line for each algorithm."""
    return summarize(
        bench.arms,
        bench.prompts,
        _in_order(bench, there),
        bench.search.selection.utility is not rank_sum,
    )


def _in_order(bench: Bench, there: OpenBench) -> list[Found]:
    """The images of the benchmark, algorithm by algorithm, prompt by prompt."""
    by_key = {image.key: image for image in there.found}
    keys = [
        (arm.folder, repeat, prompt.index)
        for arm in bench.arms
        for prompt in bench.prompts
        for repeat in range(bench.options.repeats)
    ]
    return [by_key[key] for key in keys if key in by_key]


def _write_results(bench: Bench, there: OpenBench, found: Sequence[Found]) -> None:
    """Write a line of JSON an image, with the algorithm's name, the prompt and the path."""
    names = {arm.folder: arm.name for arm in bench.arms}
    prompts = {prompt.index: prompt for prompt in bench.prompts}
    rows = []
    for image in found:
        path = image_path(there.folder, image.arm, image.index, image.repeat)
        row: dict[str, Json] = {
            "algorithm": names[image.arm],
            "image": path.relative_to(there.folder).as_posix(),
            "prompt": prompts[image.index].metadata["prompt"],
        }
        row |= to_json(image)
        del row["arm"], row["image_bytes"]
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(there.folder / RESULTS, "".join(rows))


# --- in words -------------------------------------------------------------------------------------


def main_tables(lines: Sequence[Line], title: str) -> str:
    """Means and costs of each algorithm, then differences to the first algorithm."""
    scores = list(lines[0].scores)
    costs = list(dict.fromkeys(name for line in lines for name in line.costs))
    means = []
    for line in lines:
        taken = [format(line.costs.get(name, 0.0), ABOUT.get(name, ".1f")) for name in costs]
        means.append([line.name, *map(str, line.scores.values()), *taken])
    text = f"{title}\n\n{markdown(['algorithm', *scores, *costs], means)}"
    if len(lines) > 1:
        rows = [[line.name, *map(str, line.differences.values())] for line in lines[1:]]
        table = markdown(["algorithm", *scores], rows)
        text += f"\n\ndifference to {lines[0].name}, prompt by prompt:\n\n{table}"
    for line in lines:
        if line.failed:
            text += (
                f"\n\n{line.name}: {line.failed} scores failed; the prompts without one are"
                " left out"
            )
    return text


def category_tables(lines: Sequence[Line]) -> str:
    """A table a score: a row a category, a column an algorithm. Empty where the set has no
    categories."""
    tables = []
    for score, kinds in lines[0].by_category.items():
        if not kinds:
            continue
        head = ["category", "prompts", *(line.name for line in lines)]
        rows = []
        for kind, first in kinds.items():
            means = [str(line.by_category[score][kind]) for line in lines]
            rows.append([kind or "(none)", str(first.prompts), *means])
        tables.append(f"{score} by category:\n\n{markdown(head, rows)}")
    return "\n\n".join(tables)


def table_of_parts(parts: Mapping[str, Sequence[Line]]) -> str:
    """Means of all scores as papers print them: a row an algorithm, columns of each part."""
    first, *_ = parts.values()
    head = ["algorithm"]
    rows = [[line.name] for line in first]
    for part, lines in parts.items():
        head += [f"{part}: {score}" for score in lines[0].scores]
        for row, line in zip(rows, lines, strict=True):
            row += [f"{score.mean:.4f}" for score in line.scores.values()]
    return markdown(head, rows)


def table_of_plans(parts: Mapping[str, Sequence[Foreseen]]) -> str:
    """What an image of each algorithm takes, by part, and all images together."""
    every = [each for found in parts.values() for each in found]
    kinds = [i for i, kind in enumerate(KINDS) if any(each.cost.amounts()[i] for each in every)]
    rows = []
    totals = np.zeros(len(kinds) + 2)
    for part, found in parts.items():
        for each in found:
            amounts = [*(each.cost.amounts()[i] for i in kinds), each.flops / 1e12, each.seconds]
            totals += each.images * np.array(amounts, float)
            name = f"{part}: {each.arm}" if part else each.arm
            rows.append([name, *(f"{amount:,.6g}" for amount in amounts)])
    rows.append(["all images", *(f"{total:,.6g}" for total in totals)])
    return markdown(["an image of", *(KINDS[i].label for i in kinds), "TFLOPs", "seconds"], rows)


# --- as a picture ---------------------------------------------------------------------------------


def draw(path: Path, lines: Sequence[Line]) -> None:
    """Write a PNG: a row a score, with the means of all algorithms and their differences to the
    first one. ImportError without matplotlib."""
    from matplotlib.figure import Figure

    scores = list(lines[0].scores)
    names = [line.name for line in lines]
    columns = 2 if len(lines) > 1 else 1
    figure = Figure(
        figsize=(5.2 * columns, len(scores) * (0.9 + 0.32 * len(lines))), layout="constrained"
    )
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


def _points(
    axes: Any, names: Sequence[str], estimates: Sequence[MeanOverPrompts], first: int = 0
) -> None:
    """A point with its error for each name, from the top. first: the place of the first name, which
    sets its colour."""
    for place, estimate in enumerate(estimates, first):
        error = 0.0 if estimate.error != estimate.error else estimate.error
        color = "0.35" if place == 0 else f"C{(place - 1) % 10}"
        axes.errorbar(
            estimate.mean,
            place,
            xerr=error,
            fmt="o",
            color=color,
            capsize=3,
            markersize=5,
            linewidth=1.6,
        )
    axes.set_yticks(range(first, first + len(names)), names)
    axes.set_ylim(first + len(names) - 0.5, -0.5)
    axes.grid(color="0.92", linewidth=0.8, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
