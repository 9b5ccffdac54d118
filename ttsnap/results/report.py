"""A result in words, as every door tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from ttsnap.core.results import Candidate, Result
from ttsnap.results.answers import answer_lines


def report(result: Result, paths: Sequence[Path] = ()) -> Iterator[str]:
    """What a search found and what it spent, in lines. paths: where its images were written."""
    for warning in result.warnings:
        yield f"warning: {warning}"
    for rank, (image, path) in enumerate(zip_longest(result.images, paths), 1):
        yield f"{rank}. seed {image.seed}: {listed(scored(image))}   {path or ''}".rstrip()
    yield from answer_lines(result)
    yield f"spent {result.spent}"


def scored(image: Candidate) -> dict[str, float]:
    """The scores and metrics of an image, after the sum of several rewards."""
    total = {"reward": image.reward} if len(image.scores) > 1 else {}
    return {**total, **image.scores, **image.metrics}


def listed(values: Mapping[str, float]) -> str:
    """Numbers with their names."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
