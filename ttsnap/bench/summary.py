"""The summary of a benchmark: means over prompts, differences prompt by prompt, and costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ttsnap.bench.arms import Arm
from ttsnap.bench.folder import Found
from ttsnap.bench.layout import category
from ttsnap.bench.prompts import PromptRecord
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import KINDS
from ttsnap.files.settings import Json
from ttsnap.results.record import jsonable

REWARD = "reward"
"""Column of the number that the search's utility makes of several rewards."""
MOST_CATEGORIES = 64


@dataclass(frozen=True)
class MeanOverPrompts:
    """A mean over prompts."""

    mean: float
    error: float
    """The standard error; nan for a single prompt."""
    prompts: int
    """How many prompts have a value."""

    @classmethod
    def of(cls, values: FloatArray) -> MeanOverPrompts:
        """Of values (P,), one a prompt. nan, where a reward failed, is left out."""
        known = values[np.isfinite(values)]
        if not len(known):
            return cls(math.nan, math.nan, 0)
        error = known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else math.nan
        return cls(float(known.mean()), float(error), len(known))

    def __str__(self) -> str:
        if not self.prompts:
            return "-"
        return f"{self.mean:.4f}" + ("" if math.isnan(self.error) else f" ± {self.error:.4f}")

    def to_json(self) -> dict[str, Json]:
        """nan becomes null."""
        return {"mean": jsonable(self.mean), "error": jsonable(self.error), "prompts": self.prompts}


@dataclass(frozen=True)
class Line:
    """One algorithm."""

    name: str
    images: int
    scores: Mapping[str, MeanOverPrompts]
    """By reward and metric."""
    differences: Mapping[str, MeanOverPrompts]
    """To the scores of the first algorithm, prompt by prompt."""
    by_category: Mapping[str, Mapping[str, MeanOverPrompts]]
    """Scores by name, then by category of prompts."""
    costs: Mapping[str, float]
    """Means over images of what a search took, by kind of cost."""
    failed: int
    """How many scores failed."""

    def to_json(self) -> dict[str, Json]:
        """As summary.json has it."""
        told = {"scores": self.scores, "differences": self.differences}
        tables: dict[str, Json] = {key: _json(value) for key, value in told.items()}
        tables["by_category"] = {name: _json(of) for name, of in self.by_category.items()}
        return {
            "name": self.name,
            "images": self.images,
            **tables,
            "costs": dict(self.costs),
            "failed": self.failed,
        }


def summarize(
    arms: Sequence[Arm], prompts: Sequence[PromptRecord], found: Sequence[Found], combined: bool
) -> list[Line]:
    """A line for each algorithm. A prompt's value is the mean over its repeats.

    combined: whether the number that the search raised means the same in every search, and may have
        a column.
    """
    names = _names(found, combined)
    kinds = _categories(prompts)
    mean = MeanOverPrompts.of
    first = dict[str, FloatArray]()
    lines = []
    for arm in arms:
        images = [image for image in found if image.arm == arm.folder]
        values = {name: _values(images, prompts, name) for name in names}
        first = first or values
        given = [score for each in images for score in (each.scores, each.metrics)]
        line = Line(
            name=arm.name,
            images=len(images),
            scores={name: mean(mine) for name, mine in values.items()},
            differences={name: mean(mine - first[name]) for name, mine in values.items()},
            by_category={
                name: {kind: mean(mine[at]) for kind, at in kinds.items()}
                for name, mine in values.items()
            },
            costs=_costs(images),
            failed=sum(list(scores.values()).count(None) for scores in given),
        )
        lines.append(line)
    return lines


def _json(estimates: Mapping[str, MeanOverPrompts]) -> dict[str, Json]:
    return {name: estimate.to_json() for name, estimate in estimates.items()}


def _names(found: Sequence[Found], combined: bool) -> list[str]:
    """The names of all scores: the rewards of the search first."""
    scores = dict.fromkeys(name for image in found for name in image.scores)
    metrics = dict.fromkeys(name for image in found for name in image.metrics)
    return list({**({REWARD: None} if combined and len(scores) > 1 else {}), **scores, **metrics})


def _values(images: Iterable[Found], prompts: Sequence[PromptRecord], name: str) -> FloatArray:
    """(P,) the score of each prompt: the mean over its images, nan where all failed."""
    of: dict[int, list[float]] = {prompt.index: [] for prompt in prompts}
    for image in images:
        value = {**image.metrics, **image.scores, REWARD: image.reward}.get(name)
        if isinstance(value, int | float) and image.index in of:
            of[image.index].append(float(value))
    return np.array([np.mean(values) if values else math.nan for values in of.values()])


def _categories(prompts: Sequence[PromptRecord]) -> dict[str, list[int]]:
    """The places of each category's prompts; empty for a single category, and for one a prompt."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(category(prompt.metadata), []).append(place)
    return places if 1 < len(places) <= min(MOST_CATEGORIES, len(prompts) - 1) else {}


def _costs(images: Sequence[Found]) -> dict[str, float]:
    """Means over images by kind of cost, with FLOPs where they are known, and seconds."""

    def mean(key: str) -> float:
        amounts = [image.spent.get(key) for image in images]
        return (
            float(np.mean([x if isinstance(x, int | float) else 0.0 for x in amounts]))
            if images
            else 0.0
        )

    counted = {kind.label: mean(kind.name) for kind in KINDS if kind.summed}
    rare = {kind.label for kind in KINDS if kind.rare}
    costs = {label: value for label, value in counted.items() if value or label not in rare}
    flops = mean("flops")
    return {**costs, **({"TFLOPs": flops / 1e12} if flops else {}), "seconds": mean("seconds")}
