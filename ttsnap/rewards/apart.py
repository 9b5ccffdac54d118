"""What stands for a reward that is asked in another process, on a device of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ttsnap.core.protocols import Scores
from ttsnap.rewards.reward_model import RewardModel

if TYPE_CHECKING:
    from torch import Tensor


class Apart(RewardModel):
    """An engine makes its images, and leaves its scores open."""

    apart = True

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        raise RuntimeError(f"reward {self.name!r} is asked in another process")

    def differentiable(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        raise ValueError(f"gradients of reward {self.name!r} are taken where the latents are; leave reward_actors out")
