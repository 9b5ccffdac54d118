"""VQAScore with a vision-language model of transformers: P("Yes") to "does this figure show ...?".

Source: Lin et al., Evaluating Text-to-Visual Generation with Image-to-Text Generation (arXiv
    2404.01291).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ttsnap.reward_models.preprocess import to_pictures
from ttsnap.reward_models.vlm.model import PLACE, AskedVLM
from ttsnap.reward_models.weights import pretrained

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


class VQAScore(AskedVLM):
    """P(answer) in [0, 1] for the first token of the reply, over the whole vocabulary.

    Images go through the model's own processor, as 8-bit pictures. network and processor: as
    transformers' AutoModelForImageTextToText and AutoProcessor load them; question: with {} for the
    prompt.
    """

    name = "vqascore"
    weights = "Qwen/Qwen2.5-VL-7B-Instruct"
    trained_dtype = torch.float32

    def __init__(
        self,
        network: Any,
        processor: Any,
        *,
        question: str = QUESTION,
        answer: str = "Yes",
        batch_size: int = 8,
    ) -> None:
        if "{}" not in question:
            raise ValueError(f"question needs a {{}} for the prompt, got {question!r}")
        super().__init__(network, processor, batch_size=batch_size)
        self._templates = [question.replace("{}", PLACE)]
        # The next token is read off the last place of every row.
        processor.tokenizer.padding_side = "left"
        ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"the tokenizer has no token for the answer {answer!r}")
        self.token = int(ids[0])

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **options: Any) -> Self:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        network = pretrained(AutoModelForImageTextToText, source, dtype=dtype)
        return cls(network, pretrained(AutoProcessor, source), **options)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pictures = [[picture] for picture in to_pictures(images)]
        texts = [self.layout(self.question(0, prompt), 1) for prompt in prompts]
        inputs = self.processor(images=pictures, text=texts, padding=True, return_tensors="pt").to(
            self.device
        )
        logits = self.network(**inputs).logits[:, -1].float()
        probabilities: Tensor = logits.softmax(-1)[:, self.token]
        return probabilities
