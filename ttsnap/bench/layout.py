"""Where a benchmark's files lie, for scorers that others wrote.

bench.json                          the settings, written first
results.jsonl                       a line an image, with its scores and what its search spent
summary.json, .md, .png             means, errors, differences and costs
ALGORITHM/00000/metadata.jsonl      what the prompt set says of prompt 0
ALGORITHM/00000/samples/00000.png   the image of the first repeat, 00001.png that of the second
ALGORITHM/00000/found-00000.json    what the search that made it found and spent
ALGORITHM/00000/sheet-00000.png     with --sheets, the contact sheet of the search that made it
ALGORITHM/evalscope.jsonl           the same images as evalscope's text-to-image benchmarks read them
ALGORITHM/image_paths.json          the first image of each prompt, as GenEval 2's scorer reads them

GenEval (djghosh13/geneval, evaluation/evaluate_images.py) reads the folders whose names are digits.
It loads metadata.jsonl as one JSON value, needs prompt, tag, include and exclude of it, and scores
samples/DIGITS.png. evalscope (1.14.1, evalscope/api/benchmark/adapters/text2image_adapter.py) takes
prompt, id, category, tags and image_path from each line of a local file. GenEval 2
(facebookresearch/GenEval2, README.md) takes a JSON object of prompts and paths to their images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ttsnap.bench.prompts import PromptRecord
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_json, write_text

BENCH = "bench.json"
RESULTS = "results.jsonl"
SUMMARY = "summary"
FOUND = "*/*/found-*.json"
"""Where the records of all images are, as a pattern."""
METADATA = "metadata.jsonl"
SAMPLES = "samples"
EVALSCOPE = "evalscope.jsonl"
PATHS = "image_paths.json"
CATEGORIES = ("category", "tag", "challenge", "dimension", "task_type", "edit_type")
"""Keys, in any case, under which prompt sets give the category of a prompt."""


def image_path(folder: Path, arm: str, index: int, repeat: int) -> Path:
    """Where the image of a repeat is. arm: the name of the algorithm's folder."""
    return folder / arm / f"{index:05d}" / SAMPLES / f"{repeat:05d}.png"


def sheet_path(image: Path) -> Path:
    """Where the contact sheet of an image's search is: outside of the samples, which scorers
    read."""
    return image.parents[1] / f"sheet-{image.name}"


def found_path(image: Path) -> Path:
    """Where the record of an image is, which says that it is there."""
    return image.parents[1] / f"found-{image.stem}.json"


def category(metadata: Mapping[str, Json]) -> str:
    """The category of a prompt where its set gives one as a text, else ""."""
    lower = {key.lower(): value for key, value in metadata.items()}
    values = (lower.get(key) for key in CATEGORIES)
    return next((value for value in values if isinstance(value, str)), "")


def write_metadata(folder: Path, arm: str, prompt: PromptRecord) -> None:
    """Make a prompt's folder, and write its metadata there."""
    where = image_path(folder, arm, prompt.index, 0).parents[1]
    (where / SAMPLES).mkdir(parents=True, exist_ok=True)
    write_text(where / METADATA, json.dumps(prompt.metadata, ensure_ascii=False) + "\n")


def write_lists(folder: Path, arm: str, prompts: Sequence[PromptRecord], repeats: int) -> None:
    """Write the lists of an algorithm's images for evalscope and GenEval 2, with absolute paths."""
    lines: list[str] = []
    first: dict[str, Json] = {}
    for prompt in prompts:
        paths = [
            str(image_path(folder, arm, prompt.index, repeat).resolve())
            for repeat in range(repeats)
        ]
        text = str(prompt.metadata["prompt"])
        first.setdefault(text, paths[0])
        tags = prompt.metadata.get("tags", {})
        for repeat, path in enumerate(paths):
            about: dict[str, Json] = {
                "id": f"{prompt.index:05d}-{repeat:05d}",
                "prompt": text,
                "image_path": path,
            }
            about |= {"category": category(prompt.metadata), "tags": tags}
            lines.append(json.dumps(about, ensure_ascii=False))
    write_text(folder / arm / EVALSCOPE, "\n".join(lines) + "\n")
    write_json(folder / arm / PATHS, first)
