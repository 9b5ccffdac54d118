"""EditScore (arXiv 2509.23909): how well an image was edited, in words, by Qwen2.5-VL-7B with
low-rank adapters.

Source: the package editscore 0.2, class EditScore with the backbone "qwen25vl". Two questions give
two marks from 0 to 25 each: success and restraint of the edit, from the source and the result;
naturalness and freedom from artefacts, from the result. The score is the square root of the product
of the lower mark of each, from 0 to 10.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ttsnap.reward_models.preprocess import Sight
from ttsnap.reward_models.vlm.spoken import SpokenVLM

MOST = 25
"""The best mark; the score counts it as 10."""
QUOTES = str.maketrans("\u201c\u201d\u2018\u2019", "\"\"''")
WHOLE = re.compile(r"\{.*\}")
MARKS = re.compile(r'"?score"?\s*:\s*(\[[\d.,\s]*\])')
NAN = float("nan")


class EditScore(SpokenVLM):
    """sqrt(lower mark of the edit x lower mark of the image), in [0, 10]. The prompt is the
    instruction.

    temperature: 0.7, of the 20 likeliest tokens and a nucleus of 0.9, is the authors' setting; 0
    gives the same answers each time, in batches. Several `passes` are better, by the authors.
    """

    name = "editscore"
    needs = frozenset({"source"})
    weights = "EditScore/EditScore-7B"
    backbone = "Qwen/Qwen2.5-VL-7B-Instruct"
    questions = ("edit_score_following", "edit_score_quality")
    pixels = (4 * 28 * 28, 16384 * 28 * 28)
    """Fewest and most of an image: those of the package qwen-vl-utils."""

    def __init__(
        self, network: Any, processor: Any, *, temperature: float = 0.7, **options: Any
    ) -> None:
        super().__init__(network, processor, temperature=temperature, **options)
        self.sight = Sight.of(network.config, self.pixels)

    def show(self, question: int, images: Tensor, source: Tensor | None) -> list[Tensor]:
        """The source and the result to the first question, the result to the second."""
        assert source is not None
        return [
            self.sight.image(x)[:, 0] for x in ((source, images) if question == 0 else (images,))
        ]

    def layout(self, text: str, shown: int, kind: str = "image") -> str:
        """The package's own layout: it numbers images, which the model's template does not."""
        seen = "".join(
            f"<img{i + 1}>: <|vision_start|><|image_pad|><|vision_end|>" for i in range(shown)
        )
        start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        return f"{start}{seen}{text}<|im_end|>\n<|im_start|>assistant\n"

    def read(self, answers: Sequence[str]) -> float:
        """nan unless both answers have marks from 0 to MOST, the first two of them."""
        edit, image = (marks(answer) for answer in answers)
        if len(edit) < 2 or not image or not all(0 <= mark <= MOST for mark in edit + image):
            return NAN
        return 10 / MOST * math.sqrt(min(edit) * min(image))


def marks(answer: str) -> list[float]:
    """The numbers of "score" in an answer (a JSON object, or a list alone); none where there are
    none.

    In a damaged object the list behind "score" counts. The package repairs more, and guesses at
    random where it fails.
    """
    text = answer.translate(QUOTES).replace("\n", "")
    whole = WHOLE.search(text)
    listed = [*MARKS.findall(text), *([text.strip()] if text.strip().startswith("[") else [])]
    for part in [*([whole.group()] if whole else []), *listed[-1:]]:
        try:
            value = json.loads(part)
            break
        except (ValueError, RecursionError):
            continue
    else:
        return []
    value = value.get("score", []) if isinstance(value, dict) else value
    numbers = value if isinstance(value, list) else [value]
    plain = all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
    )
    return [float(n) for n in numbers] if plain else []
