"""What rewards are shown of what a model makes: images, a few frames of a video or all of it, and of an edit the image
that was edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ttsnap.core.outcome import chosen
from ttsnap.core.protocols import Scores
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.rewards.scoring import Call, as_float64


@dataclass(frozen=True)
class Shown:
    """What rewards are shown.

    frames: of a video, how many frames each reward of images sees, whose mean is the score; None where images are made.
    edits: whether prompts edit images.
    """

    frames: int | None = None
    edits: bool = False

    def check(self, rewards: Sequence[RewardModel]) -> None:
        """ValueError for a reward that needs what there is not, and says which and what to do."""
        for reward in rewards:
            if "source" in reward.needs and not self.edits:
                raise ValueError(
                    f"reward {reward.name!r} compares a result with the image that was edited, and here no image is "
                    "edited; take a reward of images and prompts, or a pipeline that edits"
                )
            if "video" in reward.needs and self.frames is None:
                raise ValueError(
                    f"reward {reward.name!r} scores videos, and here images are made; take a reward of images, or a "
                    "pipeline that makes videos"
                )
            if self.frames is not None and reward.estimates != "pixels" and "video" not in reward.needs:
                raise ValueError(
                    f"reward {reward.name!r} reads {reward.estimates} of a whole video, but images one by one; give it "
                    'needs = {"video"}, so that it gets finished videos whole as well'
                )

    def calls(self, reward: RewardModel) -> int:
        """Reward calls that one score by this reward takes: one for each image that it sees, or one for a video."""
        return 1 if self.frames is None or "video" in reward.needs else self.frames

    def by(self, reward: RewardModel, sources: Tensor | None = None) -> Call:
        """A call of this reward on what is made, (N, 3, H, W) or (N, T, 3, H, W), with all that it needs.

        sources: (N, 3, h, w), what each row's prompt edits, or (1, 3, h, w) where that is the same; None where no
        reward needs it.
        """
        asked: Callable[..., Scores] = reward
        whole, times = self.frames is None or "video" in reward.needs, self.calls(reward)
        given = sources if "source" in reward.needs else None

        def ask(images: Tensor, texts: list[str], levels: Tensor) -> Scores:
            if given is None:
                return asked(images, texts, levels)
            source = given.expand(len(images) // times, -1, -1, -1).repeat_interleave(times, 0)
            return asked(images, texts, levels, source=source)

        def of_frames(videos: Tensor, prompts: list[str], levels: Tensor) -> Scores:
            images = videos[:, chosen(videos.shape[1], times)].flatten(0, 1)
            texts = [prompt for prompt in prompts for _ in range(times)]
            each = as_float64(ask(images, texts, levels.repeat_interleave(times)))
            if each.shape != (len(images),):
                raise ValueError(f"returned shape {each.shape} for {len(images)} frames; it must be ({len(images)},)")
            return np.asarray(each.reshape(len(videos), times).mean(1))

        return ask if whole else of_frames

    def tokens(self, reward: RewardModel) -> list[int]:
        """What each row of its last call took of language models; nothing where that asked none."""
        taken, times = list(reward.tokens_taken), self.calls(reward)
        return [sum(taken[i : i + times]) for i in range(0, len(taken), times)]
