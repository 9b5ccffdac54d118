"""Writes what a benchmark found beside its images: every line, the summary, and the lists that scorers read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ttsnap.bench.chart import draw
from ttsnap.bench.folder import Found, OpenBench
from ttsnap.bench.layout import RESULTS, SUMMARY, image_path, write_lists
from ttsnap.bench.run import Bench
from ttsnap.bench.summary import Line, summarize
from ttsnap.bench.tables import category_tables, main_tables
from ttsnap.core.utility import rank_sum
from ttsnap.files.settings import to_json
from ttsnap.files.writing import write_json, write_text


def title_of(bench: Bench) -> str:
    """What the tables are of."""
    prompts, repeats = len(bench.prompts), bench.options.repeats
    each = f"{prompts} prompt{'s' * (prompts > 1)} x {repeats} image{'s' * (repeats > 1)}"
    pot = ", shared" if bench.shared else ""
    return f"{each}, a budget of {bench.budget} each{pot}; ± is the standard error over prompts, costs are per image"


def write_report(bench: Bench, there: OpenBench) -> tuple[str, bool]:
    """Write it all; the tables to print, and whether there is a chart, which takes matplotlib."""
    found = _in_order(bench, there)
    lines = summarize(bench.arms, bench.prompts, found, bench.utility is not rank_sum)
    tables = main_tables(lines, title_of(bench))
    _write_results(bench, there, found)
    for arm in bench.arms:
        write_lists(there.folder, arm.folder, bench.prompts, bench.options.repeats)
    write_json(there.folder / f"{SUMMARY}.json", _summary(bench, lines))
    more = category_tables(lines)
    write_text(there.folder / f"{SUMMARY}.md", tables + (f"\n\n{more}" if more else "") + "\n")
    try:
        draw(there.folder / f"{SUMMARY}.png", lines)
    except ImportError:
        return tables, False
    return tables, True


def _in_order(bench: Bench, there: OpenBench) -> list[Found]:
    """The images that were asked for, algorithm by algorithm, prompt by prompt."""
    by_key = {image.key: image for image in there.found}
    keys = [
        (arm.folder, repeat, prompt.index)
        for arm in bench.arms
        for prompt in bench.prompts
        for repeat in range(bench.options.repeats)
    ]
    return [by_key[key] for key in keys if key in by_key]


def _summary(bench: Bench, lines: Sequence[Line]) -> dict[str, Any]:
    return {
        "prompts": len(bench.prompts),
        "repeats": bench.options.repeats,
        "budget": str(bench.budget),
        "shared": bench.shared,
        "first": lines[0].name,
        "algorithms": [line.to_json() for line in lines],
    }


def _write_results(bench: Bench, there: OpenBench, found: Sequence[Found]) -> None:
    """A line an image, as people read it: the algorithm's name, the prompt, where the image is."""
    names = {arm.folder: arm.name for arm in bench.arms}
    prompts = {prompt.index: prompt for prompt in bench.prompts}
    rows = []
    for image in found:
        path = image_path(there.folder, image.arm, image.index, image.repeat).relative_to(there.folder)
        told = {key: value for key, value in to_json(image).items() if key not in ("arm", "bytes")}
        rows.append({
            "algorithm": names[image.arm], "image": path.as_posix(), "prompt": prompts[image.index].metadata["prompt"],
            **told,
        })  # fmt: skip
    write_text(there.folder / RESULTS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
