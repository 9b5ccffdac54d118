"""UnifiedReward 2.0 (arXiv 2503.05236): alignment, coherence and style of an image, each from 1 to
5, in words.

Source: github.com/CodeGoat24/UnifiedReward, inference_qwen/UnifiedReward-2.0-inference. Its authors
report the three by themselves; the score here is their mean, or that of some. They send images as
JPEG to a server; here the model sees them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ttsnap.reward_models.vlm.spoken import SpokenVLM

AXES = ("Alignment", "Coherence", "Style")
SCORE = re.compile(r"(\w+) Score \(1-5\):\s*(\d(?:\.\d+)?)(?![\d.])")


class UnifiedReward(SpokenVLM):
    """The mean of the scores on `axes`, in [1, 5]. Any size of UnifiedReward-2.0 that transformers
    loads will do."""

    name = "unifiedreward"
    weights = "CodeGoat24/UnifiedReward-2.0-qwen-7b"
    questions = ("unified_reward",)

    def __init__(
        self,
        network: Any,
        processor: Any,
        *,
        axes: Sequence[str] = AXES,
        answer_tokens: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(network, processor, answer_tokens=answer_tokens, **options)
        if not axes or not set(axes) <= set(AXES):
            raise ValueError(f"axes are some of {', '.join(AXES)}, got {list(axes)}")
        self.axes = tuple(axes)

    def read(self, answers: Sequence[str]) -> float:
        """nan unless the answer has one score from 1 to 5 on each axis."""
        found = [(axis, float(score)) for axis, score in SCORE.findall(answers[0])]
        marks = dict(found)
        chosen = [marks.get(axis, 0.0) for axis in self.axes]
        sure = len(marks) == len(found) and all(1 <= mark <= 5 for mark in chosen)
        return sum(chosen) / len(chosen) if sure else float("nan")
