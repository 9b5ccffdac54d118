"""The embedded world's learned reward: a small network in place of the exact checker (docs/embedded_model.md).

It stands for the rewards that people have for real pictures: good, differentiable, and wrong at times.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ttsnap.reward_models.noise_aware.student import NoiseAware
from ttsnap.reward_models.preprocess import HALF, Preprocess
from ttsnap.reward_models.scorer import Scorer

from ttsnap.scenes import FOLDER, IMAGE_SIZE, parse
from ttsnap.scenes.reader import SceneReader, load_reader, word_ids


class ScenesLearned(Scorer):
    """The network's guess of the checker's soft score, in [0, 1]."""

    name = "scenes-learned"
    adapted = (
        r"(fine|coarse)\.\d+\.conv[12]|stem|down|looks\.\d+\.(query|key|value|out)|think\.\d+\.linear[12]|head\.[13]"
    )
    trained = r"(stem|fine|down|coarse|norm|looks|think|compare|head)\..*"
    level_sites = r"stem|down|coarse\.\d+"
    example = "a red circle"

    def __init__(self, network: SceneReader, *, batch_size: int = 256) -> None:
        super().__init__(network, Preprocess(IMAGE_SIZE, HALF, HALF, "squash"), batch_size=batch_size)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 256,
    ) -> ScenesLearned:
        """The packaged network, or one that scripts/train_scenes made. ValueError if it does not load."""
        network = load_reader(FOLDER / "reward" if name_or_path is None else Path(name_or_path))
        return cls(network.to(device, dtype), batch_size=batch_size)

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt outside the grammar, before anything is computed."""
        for prompt in prompts:
            parse(prompt)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        network: Any = self.network
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        states, empty = network.read(word_ids(list(unique)).to(self.device))
        rows = torch.tensor([unique[prompt] for prompt in prompts], device=self.device)
        logits: Tensor = network.match(network.see(self.pixels(images)), states[rows], empty[rows])
        return logits.sigmoid()


class ScenesNoiseAware:
    """The learned reward for x0 estimates of any noise level: what `ttsnap distill` made of ScenesLearned."""

    name = "scenes-noise-aware"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 256,
    ) -> NoiseAware:
        """The packaged one, or a folder of your own. ValueError where it does not load."""
        options: dict[str, Any] = {"device": device, "dtype": dtype, "batch_size": batch_size}
        made: NoiseAware = NoiseAware.from_pretrained(name_or_path or FOLDER / "noise_aware", **options)
        made.name = cls.name
        return made
