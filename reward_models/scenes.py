"""Rewards of the embedded world: its exact checker, and a learned network in the checker's place.

The learned network stands for the rewards that people have for real pictures: good, differentiable,
and wrong at times (docs/embedded_model.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import FloatArray
from ttsnap.reward_models.noise_aware.student import NoiseAware
from ttsnap.reward_models.preprocess import HALF, Preprocess
from ttsnap.reward_models.scorer import Scorer
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.scenes import FOLDER, IMAGE_SIZE, check, parse
from ttsnap.scenes.reader import SceneReader, load_reader, word_ids


class ScenesReward(RewardModel):
    """How much of the caption the image fulfils, in [0, 1]: objects, colours, shapes, counts,
    relation, background."""

    name = "scenes"
    example = "a red circle"
    strict = False

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt outside the grammar."""
        for prompt in prompts:
            parse(prompt)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> FloatArray:
        """images (N, 3, 32, 32) in [0, 1] -> (N,) float32."""
        soft, right = check(images.float().cpu().numpy(), [parse(prompt) for prompt in prompts])
        return (right if self.strict else soft).astype(np.float32)


class ScenesStrict(ScenesReward):
    """1 where the image is right in every respect, else 0. Meant to report, not to search with."""

    name = "scenes-strict"
    strict = True


class ScenesLearned(Scorer):
    """The network's guess of the checker's soft score, in [0, 1]."""

    name = "scenes-learned"
    adapted = (
        r"(fine|coarse)\.\d+\.conv[12]|stem|down|looks\.\d+\.(query|key|value|out)"
        r"|think\.\d+\.linear[12]|head\.[13]"
    )
    trained = r"(stem|fine|down|coarse|norm|looks|think|compare|head)\..*"
    level_sites = r"stem|down|coarse\.\d+"
    example = "a red circle"

    def __init__(self, network: SceneReader, *, batch_size: int = 256) -> None:
        super().__init__(
            network, Preprocess(IMAGE_SIZE, HALF, HALF, "squash"), batch_size=batch_size
        )

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **options: Any) -> Self:
        """source: a file that scripts/train_worlds made; the packaged network by default."""
        return cls(
            load_reader(Path(source) if source else FOLDER / "reward").to(dtype=dtype), **options
        )

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt outside the grammar."""
        for prompt in prompts:
            parse(prompt)

    def embed_images(self, images: Tensor) -> Tensor:
        cells: Tensor = self.network.see(self.pixels(images))
        return cells.flatten(1)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        states, empty = self.network.read(word_ids(list(unique)).to(self.device))
        rows = torch.tensor([unique[prompt] for prompt in prompts], device=self.device)
        logits: Tensor = self.network.match(
            self.network.see(self.pixels(images)), states[rows], empty[rows]
        )
        return logits.sigmoid()


class ScenesNoiseAware(NoiseAware):
    """The learned reward for x0 estimates of any noise level: what `ttsnap distill` made of
    ScenesLearned."""

    name = "scenes-noise-aware"

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None, **options: Any) -> Self:
        """The packaged one, or a folder of your own. ValueError where it does not load."""
        made = super().from_pretrained(folder or FOLDER / "noise_aware", **options)
        made.name = cls.name
        return made
