"""Measures of likeness: features of images, which are the more alike the smaller their angle
(core/diversity.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ttsnap.core.names import unknown
from ttsnap.profiling.flops import count_flops
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.registry import (
    AUTO,
    DINO,
    LIKENESSES,
    PIXELS,
    REWARD,
    REWARDS,
    make_reward,
)
from ttsnap.reward_models.scorer import Scorer
from ttsnap.reward_models.weights import pretrained
from ttsnap.rewards.reward_model import RewardModel

Features: TypeAlias = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> features (N, D)."""
CELLS = 8
"""Of a side, whose mean colours are compared by PIXELS."""
BATCH = 32
"""Images that a network sees at once, where it does not say."""


@dataclass(frozen=True)
class Likeness:
    """A measure of likeness that an engine takes."""

    name: str
    features: Features
    trial: Tensor | None = None
    """An image (1, 3, h, w) that its FLOPs are counted on; None where they are not worth it."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.features(images)

    @cached_property
    def flops(self) -> float:
        """Of the features of an image."""
        return 0.0 if self.trial is None else count_flops(partial(self, self.trial))


class Dino(Scorer):
    """DINOv2 without a score: its class token says what is to be seen, whatever the prompt."""

    name = DINO
    weights = "facebook/dinov2-base"

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **options: Any) -> Self:
        from transformers import AutoModel

        seen = Preprocess(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), rules="transformers")
        return cls(pretrained(AutoModel, source, dtype=dtype), seen, **options)

    def embed_images(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.network(pixel_values=self.pixels(images)).last_hidden_state
        return tokens[:, 0]


def make_likeness(
    spec: str | Features | None, rewards: Sequence[RewardModel], device: torch.device | str = "cpu"
) -> Likeness | None:
    """The measure that a spec means: None, PIXELS, DINO, REWARD, the name of a reward with
    features, a function.

    REWARD takes the features of the first of the search's rewards that has some, AUTO those or
    pixels. ValueError for a spec that means none.
    """
    if spec is None or not isinstance(spec, str):
        return None if spec is None else Likeness(getattr(spec, "__name__", "function"), spec)
    name, _, weights = spec.partition(":")
    own = [
        reward
        for reward in rewards
        if reward.embed_images is not None and (spec in (AUTO, REWARD, reward.name))
    ]
    if spec == PIXELS or (spec == AUTO and not own):
        return Likeness(PIXELS, _cells)
    if name == DINO:
        own = [Dino.from_pretrained(weights or None, device=device)]
    elif not own and name in REWARDS:
        own = [
            reward
            for reward in [make_reward(spec, device=device)]
            if reward.embed_images is not None
        ]
    elif not own and spec != REWARD:
        raise ValueError(unknown("likeness", spec, (*LIKENESSES, *REWARDS)))
    if not own:
        which = "none of the rewards has" if spec == REWARD else f"reward {spec!r} does not have"
        raise ValueError(
            f"{which} features by which images can be compared; name another likeness: {PIXELS},"
            f" {DINO}, or a reward with two towers, as clip"
        )
    return Likeness(own[0].name, partial(_in_parts, own[0]), own[0].trial_image())


def _cells(images: Tensor) -> Tensor:
    """Mean colours of CELLS x CELLS parts of each image, from mid-grey."""
    return (adaptive_avg_pool2d(images.float(), CELLS) - 0.5).flatten(1)


def _in_parts(reward: RewardModel, images: Tensor) -> Tensor:
    size = getattr(reward, "batch_size", BATCH)
    assert reward.embed_images is not None
    return torch.cat([reward.embed_images(part) for part in images.split(size)])
