"""Counting by open-vocabulary detection: minus the sum of squared differences from the numbers that a prompt asks for.

The negative residual sum of squares of detected counts, as searches for counting use it. It is not comparable with
GenEval, which detects with another model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from ttsnap.reward_models.preprocess import check_images, to_levels
from ttsnap.reward_models.weights import explained

from ttsnap.rewards.reward_model import RewardModel

_WORDS = "one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {"a": 1, "an": 1} | {word: n for n, word in enumerate(_WORDS.split(" "), 1)}
_NUMBER = re.compile(rf"\b({'|'.join(NUMBERS)}|\d+)\s+", re.IGNORECASE)
_PREPOSITIONS = "and|on|in|at|above|below|under|over|near|next|left|right|with|of|to|behind|beside"
_END = re.compile(rf"[,.;:]|\b(?:{_PREPOSITIONS})\b", re.IGNORECASE)


def parse_counts(prompt: str) -> dict[str, int]:
    """ "two red apples on a table" -> {"red apples": 2, "table": 1}. A thing named twice is added up; 0 to 99 count."""
    counts: dict[str, int] = {}
    parts = list(_NUMBER.finditer(prompt))
    for part, after in zip(parts, [*parts[1:], None], strict=False):
        phrase = _END.split(prompt[part.end() : after.start() if after else len(prompt)])[0].strip().lower()
        word = part.group(1).lower()
        n = NUMBERS[word] if word in NUMBERS else int(word)
        if phrase and n < 100:
            counts[phrase] = counts.get(phrase, 0) + n
    return counts


class CountReward(RewardModel):
    """-sum (detected - wanted)^2 over the things a prompt counts; 0 is perfect.

    network and processor: a transformers zero-shot detector (Grounding DINO, OWLv2); threshold: least score of a
    detection; counts: how to read a prompt, {phrase: number}.
    """

    name = "counting"
    heavy = True
    network: nn.Module

    def __init__(
        self,
        network: Any,
        processor: Any,
        *,
        threshold: float = 0.2,
        counts: Callable[[str], dict[str, int]] = parse_counts,
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
        self.network, self.processor = network.eval().requires_grad_(False), processor
        self.threshold, self.counts = threshold, counts

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "IDEA-Research/grounding-dino-base",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        threshold: float = 0.2,
    ) -> CountReward:
        """A local folder or a hub id. ValueError where it cannot be loaded."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        source = str(name_or_path)
        network = explained(lambda: AutoModelForZeroShotObjectDetection.from_pretrained(source, dtype=dtype), source)
        processor = explained(lambda: AutoProcessor.from_pretrained(source), source)
        return cls(network.to(device), processor, threshold=threshold)

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt that counts nothing. An empty one passes: it only measures the time of a call."""
        for prompt in prompts:
            if prompt and not self.counts(prompt):
                raise ValueError(f"prompt {prompt!r} counts nothing; write numbers, as in 'two apples and a pear'")

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Tensor:
        """images (N, 3, H, W) float in [0, 1], N prompts -> (N,) float32 on the CPU, nan where nothing is counted."""
        check_images(images, prompts)
        arrays = to_levels(images).byte().permute(0, 2, 3, 1).cpu().numpy()
        scores = [self._one(Image.fromarray(a), self.counts(p)) for a, p in zip(arrays, prompts, strict=True)]
        return torch.tensor(scores, dtype=torch.float32)

    def _one(self, picture: Image.Image, wanted: dict[str, int]) -> float:
        """The score of one picture; wanted: how many of each phrase. nan where `wanted` is empty.

        The detector is asked for one phrase at a time: it would give each box to one phrase only, and the number of
        phrases varies.
        """
        device = next(self.network.parameters()).device
        total = 0.0
        for phrase, n in wanted.items():
            inputs = self.processor(images=picture, text=[[phrase]], return_tensors="pt").to(device)
            detections = self.processor.post_process_grounded_object_detection(
                self.network(**inputs), threshold=self.threshold, target_sizes=[(picture.height, picture.width)]
            )
            total += (len(detections[0]["scores"]) - n) ** 2
        return -total if wanted else float("nan")
