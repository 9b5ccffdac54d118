"""Counting by open-vocabulary detection: minus the sum of squared differences from the numbers that
a prompt asks for.

The negative residual sum of squares of detected counts, as searches for counting use it. It is not
comparable with GenEval, which detects with another model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from ttsnap.reward_models.preprocess import to_pictures
from ttsnap.reward_models.scorer import NetworkReward
from ttsnap.reward_models.weights import pretrained

_WORDS = "one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {"a": 1, "an": 1} | {word: n for n, word in enumerate(_WORDS.split(" "), 1)}
_NUMBER = re.compile(rf"\b({'|'.join(NUMBERS)}|\d+)\s+", re.IGNORECASE)
_PREPOSITIONS = "and|on|in|at|above|below|under|over|near|next|left|right|with|of|to|behind|beside"
_END = re.compile(rf"[,.;:]|\b(?:{_PREPOSITIONS})\b", re.IGNORECASE)


def parse_counts(prompt: str) -> dict[str, int]:
    """ "two red apples on a table" -> {"red apples": 2, "table": 1}. A thing named twice is added
    up; 0 to 99 count."""
    counts: dict[str, int] = {}
    parts = list(_NUMBER.finditer(prompt))
    for part, after in zip(parts, [*parts[1:], None], strict=False):
        phrase = (
            _END.split(prompt[part.end() : after.start() if after else len(prompt)])[0]
            .strip()
            .lower()
        )
        word = part.group(1).lower()
        n = NUMBERS[word] if word in NUMBERS else int(word)
        if phrase and n < 100:
            counts[phrase] = counts.get(phrase, 0) + n
    return counts


class CountReward(NetworkReward):
    """-sum (detected - wanted)^2 over the things a prompt counts; 0 is perfect, nan where a prompt
    counts nothing.

    network and processor: a transformers zero-shot detector (Grounding DINO, OWLv2); threshold:
    least score of a detection; counts: how to read a prompt, {phrase: number}.
    """

    name = "counting"
    weights = "IDEA-Research/grounding-dino-base"

    def __init__(
        self,
        network: Any,
        processor: Any,
        *,
        threshold: float = 0.2,
        counts: Callable[[str], dict[str, int]] = parse_counts,
        batch_size: int = 32,
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
        super().__init__(network, batch_size=batch_size)
        self.processor = processor
        self.threshold = threshold
        self.counts = counts

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **options: Any) -> Self:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        network = pretrained(AutoModelForZeroShotObjectDetection, source, dtype=dtype)
        return cls(network, pretrained(AutoProcessor, source), **options)

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt that counts nothing. An empty prompt passes: it measures the time
        of a call."""
        for prompt in prompts:
            if prompt and not self.counts(prompt):
                raise ValueError(
                    f"prompt {prompt!r} counts nothing; write numbers, as in 'two apples and a"
                    " pear'"
                )

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pictures = zip(to_pictures(images), map(self.counts, prompts), strict=True)
        return torch.tensor(
            [self._one(*one) for one in pictures], dtype=torch.float32, device=self.device
        )

    def _one(self, picture: Image.Image, wanted: dict[str, int]) -> float:
        """The score of one picture; wanted: how many of each phrase. nan where `wanted` is empty.

        The detector gets one phrase at a time: of several, it gives each box to one only, and their
        number varies.
        """
        total = 0.0
        for phrase, n in wanted.items():
            inputs = self.processor(images=picture, text=[[phrase]], return_tensors="pt").to(
                self.device
            )
            detections = self.processor.post_process_grounded_object_detection(
                self.network(**inputs),
                threshold=self.threshold,
                target_sizes=[(picture.height, picture.width)],
            )
            total += (len(detections[0]["scores"]) - n) ** 2
        return -total if wanted else float("nan")
