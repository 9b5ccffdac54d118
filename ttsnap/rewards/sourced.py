"""Rewards of edits where every image edits the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ttsnap.core.protocols import Scores
from ttsnap.rewards.reward_model import RewardModel

if TYPE_CHECKING:
    from torch import Tensor


class Sourced(RewardModel):
    """A reward that needs the image that was edited, with that image given: a reward of images and prompts.

    source: (1, 3, h, w) float in [0, 1], on the device where the reward is called.
    """

    def __init__(self, given: RewardModel, source: Tensor) -> None:
        self.given, self.source = given, source
        self.name, self.example, self.network = given.name, given.example, given.network
        self.needs = given.needs - {"source"}

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        """As the given reward's, with the source beside each image."""
        asked: Callable[..., Scores] = self.given
        source = self.source.to(images.device).expand(len(images), -1, -1, -1)
        return asked(images, prompts, level, source=source)

    def check(self, prompts: Sequence[str]) -> None:
        self.given.check(prompts)

    @cached_property
    def flops(self) -> float:
        return self.given.flops

    def without_alpha(self, images: Tensor) -> Tensor:
        return self.given.without_alpha(images)

    def trial_image(self) -> Tensor:
        return self.given.trial_image()
