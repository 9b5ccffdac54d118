"""What a search found of each item of a checklist: the scores by the items' words, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ttsnap.core.checklist import YES, is_item
from ttsnap.core.results import Result
from ttsnap.reward_models.registry import asked_of


def answered(result: Result, rewards: Sequence[Any], names: Sequence[str], prompt: str) -> Result:
    """The result with the scores of a checklist's items by what was asked of this prompt.

    rewards, and their names: those of the search."""
    if not any(map(is_item, rewards)):
        return result
    asked = asked_of(rewards, prompt)
    told = {at: words for words, at in asked.items()}
    told |= {i: names[i] for i, spec in enumerate(rewards) if not is_item(spec)}
    images = []
    for image in result.images:
        scores = {told[i]: s for i, s in enumerate(image.scores.values()) if i in told}
        images.append(replace(image, scores=scores))
    return replace(result, images=tuple(images), asked=asked)


def answer_lines(result: Result) -> list[str]:
    """A checklist as a table: whether the best image has each item, its answer, and how many
    finished images have it; no lines without a checklist."""
    wide = max(map(len, result.asked), default=0)
    finished = result.spent.finished
    best = result.images[0].scores if result.images else {}
    lines = list[str]()
    for words, had in result.answers.items():
        answer = best.get(words, math.nan)
        said = "no answer"
        if not math.isnan(answer):
            said = f"{'yes' if answer >= YES else 'no':<3} {answer:.2f} "
        lines.append(f"{words:<{wide}}  {said}  {had or 'none'} of {finished} images")
    return lines
