"""How likely a draft of the embedded world is to become a right image: a logistic of what the
checklist and the checker find in it.

    ttsnap generate CAPTION --reward 'scenes-likely then checklist' --draft embedded \\
        --options.draft_share 0.7 --options.keep '[]' --options.levels '[]'

Its coefficients are fitted by `benchmarks/checklists.py --save`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

from ttsnap.core.arrays import FloatArray
from ttsnap.core.utility import FLOOR
from ttsnap.files.reading import read_object
from ttsnap.files.settings import check
from ttsnap.reward_models.checklist.questions import questions
from ttsnap.reward_models.checklist.worlds import looked
from ttsnap.reward_models.scenes import ScenesReward
from ttsnap.scenes import check as checked
from ttsnap.scenes import detect, parse

FILE = Path(__file__).with_name("likely.json")


class ScenesLikely(ScenesReward):
    """The probability that a draft, once it is finished, fulfils its whole caption. It is meant
    for drafts."""

    name = "scenes-likely"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> FloatArray:
        """images (N, 3, 32, 32) in [0, 1] -> (N,) float64."""
        pixels = images.float().cpu().numpy()
        soft, _ = checked(pixels, [parse(prompt) for prompt in prompts])
        found = detect(pixels)
        odds = np.zeros(len(pixels))
        *weights, bias = coefficients()
        for i, prompt in enumerate(prompts):
            items = [str(item) for item in questions(prompt)]
            answers = np.array([looked(item)(found, i) for item in items])
            odds[i] = features(answers, items, soft[i]) @ weights + bias
        return np.asarray(1 / (1 + np.exp(-odds)))


@cache
def coefficients() -> tuple[float, ...]:
    """Those of the features, and last the bias."""
    found: tuple[float, ...] = check(FILE.name, read_object(FILE)["weights"], tuple[float, ...])
    return found


def features(answers: FloatArray, items: Sequence[str], soft: FloatArray) -> FloatArray:
    """Answers (..., items) and the checker's soft score (...) -> (..., 6): log answers summed by
    kind of item, the soft score, and the least log answer about a group."""
    logs = np.log(np.maximum(answers, FLOOR))
    kinds = np.array([kind_of(item) for item in items])
    by_kind = [logs[..., kinds == kind].sum(-1) for kind in range(4)]
    return np.stack([*by_kind, soft, logs[..., kinds == 0].min(-1)], -1)


def kind_of(item: str) -> int:
    """Of a group, a relation, the ground, or that nothing else is there."""
    if "nothing else" in item:
        return 3
    return 2 if "background" in item else int(item.startswith("the "))
