"""The embedded world's exact checker as a reward (soft) and as a held-out metric (strict)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ttsnap.core.arrays import BoolArray, FloatArray
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.scenes import check, parse


class ScenesReward(RewardModel):
    """How much of the caption the image fulfils, in [0, 1]: objects, colours, shapes, counts, relation, background."""

    name = "scenes"
    example = "a red circle"

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt outside the grammar, before anything is computed."""
        for prompt in prompts:
            parse(prompt)

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> FloatArray:
        """images (N, 3, 32, 32) in [0, 1] -> (N,) float32."""
        return _check(images, prompts)[0].astype(np.float32)


class ScenesStrict(ScenesReward):
    """1 where the image is right in every respect, else 0. Meant to report, not to search with."""

    name = "scenes-strict"

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> FloatArray:
        return _check(images, prompts)[1].astype(np.float32)


def _check(images: Tensor, prompts: Sequence[str]) -> tuple[FloatArray, BoolArray]:
    return check(images.float().cpu().numpy(), [parse(prompt) for prompt in prompts])
