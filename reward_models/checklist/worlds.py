"""Answers about pictures of the embedded worlds, by rules in place of a model.

Each is a probability in [0, 1], .5 where the exact checker draws its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import FloatArray
from ttsnap.reward_models.checklist.questions import COUNT, NOTHING_ELSE, Item
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.scenes import Objects, Spec, detect, parse
from ttsnap.scenes.checker import MIN_OVERLAP
from ttsnap.scenes.grammar import BACKGROUNDS, COLORS, RELATIONS, SHAPES, Group
from ttsnap.scenes.render import GRAY_LEVELS
from ttsnap.signs import RGB

_GROUND = re.compile(rf"an? ({'|'.join(BACKGROUNDS)}) background")
_KIND = rf"the ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_RELATION = re.compile(rf"{_KIND} ({'|'.join(RELATIONS)}) {_KIND}")
_PLATE = re.compile(rf"an? ({'|'.join(RGB)}) plate")
_SURE = 40.0
"""How fast an overlap with a template tells, from where the checker draws its line."""
_SPREAD = 40.0
"""Levels by which the colour of a plate may be off."""

Look: TypeAlias = Callable[[Objects, int], float]
"""Objects of N images and the number of one -> the answer about it."""


class ScenesAnswers(RewardModel):
    """Answers about pictures of the embedded world, by the objects that its checker detects."""

    name = "scenes answers"
    example = "a red circle"

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a question that is none about this world."""
        for prompt in prompts:
            looked(prompt)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> FloatArray:
        """images (N, 3, 32, 32) in [0, 1], N questions -> (N,) float64. Equal images that follow
        each other are looked at once."""
        looks = [looked(prompt) for prompt in prompts]
        pixels = images.float().cpu().numpy()
        new = np.ones(len(pixels), bool)
        new[1:] = (pixels[1:] != pixels[:-1]).any((1, 2, 3))
        found = detect(pixels[new])
        at = new.cumsum() - 1
        return np.array([look(found, int(i)) for look, i in zip(looks, at, strict=True)], float)


def looked(question: str) -> Look:
    """How a question is answered. ValueError for one that is none about the embedded world."""
    item = Item.parse(question)
    if (ground := _GROUND.fullmatch(item.words)) is not None:
        level = float(GRAY_LEVELS[BACKGROUNDS.index(ground[1])])
        return lambda found, i: float(0.5 ** ((float(found.background[i]) - level) / 0.2) ** 2)
    if (number := NOTHING_ELSE.fullmatch(item.words)) is not None:
        return lambda found, i: float(0.25 ** abs(_count(found, i) - int(number[1])))
    if (related := _RELATION.fullmatch(item.words)) is not None:
        ours = (related[1], related[2])
        theirs = (related[4], related[5])
        return lambda found, i: _held(found, i, ours, related[3], theirs)
    words = item.words if item.kind == COUNT else question
    numbers = {str(n): word for n, word in enumerate(("a", "two", "three", "four"), 1)}
    first, _, rest = words.partition(" ")
    spec: Spec = parse(f"{numbers.get(first, first)} {rest}")
    if len(spec.groups) > 1 or spec.background is not None:
        raise ValueError(
            f"ask one thing at a time, as 'two red circles', 'a black background' or 'the red"
            f" circle above the blue square', got {question!r:.80}"
        )
    (group,) = spec.groups
    return lambda found, i: _exactly(group, _likely(found, i, *group.noun.split()))


def _rows(found: Objects, image: int) -> slice:
    low, high = np.searchsorted(found.image, (image, image + 1))
    return slice(int(low), int(high))


def _count(found: Objects, image: int) -> int:
    return int((found.image == image).sum())


def _likely(found: Objects, image: int, color: str, shape: str) -> FloatArray:
    """(M,) how likely each object of an image is of this colour and shape."""
    rows = _rows(found, image)
    s = SHAPES.index(shape)
    overlap = found.overlap[rows].astype(float)
    others = np.delete(overlap, s, 1).max(1, initial=0.0)
    sure = np.minimum(overlap[:, s] - MIN_OVERLAP, overlap[:, s] - others)
    return np.asarray((found.color[rows] == COLORS.index(color)) / (1 + np.exp(-_SURE * sure)))


def _exactly(group: Group, likely: FloatArray) -> float:
    """P(as many objects are of the group as it has), each independently with its probability."""
    chances = np.ones(1)
    for p in likely:
        chances = np.convolve(chances, [1 - p, p])
    return float(chances[group.count]) if group.count < len(chances) else 0.0


def _held(
    found: Objects, image: int, ours: tuple[str, str], relation: str, theirs: tuple[str, str]
) -> float:
    """How well all objects of one kind lie that way from all of another; 0 where there are none."""
    rows = _rows(found, image)
    places = np.stack([found.x, found.y], -1)[rows]
    first, second = (places[_likely(found, image, *kind) > 0.5] for kind in (ours, theirs))
    if not len(first) or not len(second):
        return 0.0
    axis = 1 if relation in RELATIONS[:2] else 0
    sign = 1 if relation in RELATIONS[::2] else -1
    apart = sign * (second.mean(0) - first.mean(0))
    along = float(apart[axis])
    across = abs(float(apart[1 - axis]))
    nearest = float((sign * second[:, axis]).min() - (sign * first[:, axis]).max())
    return float(1 / (1 + np.exp(-min(along - across, nearest - 2) / 2)))


def check_item(question: str) -> None:
    """ValueError for a question that is about neither embedded world."""
    if _PLATE.fullmatch(question) is None:
        looked(question)


class SignsAnswers(RewardModel):
    """Answers about the plates of the world that writes: whether one is of a colour."""

    name = "signs answers"
    example = "a red plate"

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a question that is not about a plate's colour."""
        for prompt in prompts:
            if _PLATE.fullmatch(prompt) is None:
                raise ValueError(
                    f"of signs, 'text: WORD' and 'a red plate' can be asked ({', '.join(RGB)});"
                    f" got {prompt!r:.80}"
                )

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> FloatArray:
        """images (N, 3, 32, 96) in [0, 1], N questions -> (N,) float64, by the pictures' edges."""
        self.check(prompts)
        edges = torch.cat([images[:, :, 0], images[:, :, -1]], -1).median(-1).values
        away = np.square(255 * edges.double().cpu().numpy()[:, None] - list(RGB.values())).sum(-1)
        near = np.exp(-(away - away.min(1, keepdims=True)) / (2 * _SPREAD**2))
        wanted = [list(RGB).index(prompt.split()[1]) for prompt in prompts]
        return np.asarray((near / near.sum(1, keepdims=True))[np.arange(len(wanted)), wanted])
