"""VQAScore with a vision-language model of transformers: P("Yes") to "does this figure show ...?".

Source: Lin et al., Evaluating Text-to-Visual Generation with Image-to-Text Generation (arXiv
    2404.01291).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from ttsnap.profiling.flops import count_flops
from ttsnap.reward_models.preprocess import check_images, to_pictures
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
    joins = True

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

    @torch.no_grad()
    def score_each(self, images: Tensor, prompts: Sequence[Sequence[str]]) -> Tensor:
        """An image, and whatever else stands before its questions, is read once for all of them."""
        if all(len(texts) == 1 for texts in prompts):
            return self(images, [text for (text,) in prompts])
        check_images(images)
        for texts in prompts:
            self.check(texts)
        pairs = zip(images.split(1), prompts, strict=True)
        return torch.cat([self._after_one_image(image, texts) for image, texts in pairs])

    @cached_property
    def flops_more(self) -> float:
        trial = self.trial_image()
        example = self.example
        both = [[example, f"{example} and another one"]]
        return count_flops(lambda: self.score_each(trial, both)) - self.flops

    def _after_one_image(self, image: Tensor, prompts: Sequence[str]) -> Tensor:
        texts = [self.layout(self.question(0, prompt), 1) for prompt in prompts]
        many = len(texts)
        read = self.processor(
            images=[[picture] for picture in to_pictures(image)] * many,
            text=texts,
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        mask = read["attention_mask"].bool()
        rows = [ids[there] for ids, there in zip(read["input_ids"], mask, strict=True)]
        shared = _shared(rows)
        first = {
            name: value[0][mask[0]][None, :shared]  # of each token
            if value.shape[:2] == mask.shape
            else value[: len(value) // many]  # of each picture
            for name, value in read.items()
        }
        # its name in transformers from 5.24 on, and before
        takes = inspect.signature(self.network.forward).parameters
        name = "cache" if "cache" in takes else "past_key_values"
        cache = self.network(**first, use_cache=True)[name]
        cache.batch_repeat_interleave(many)
        rests = [row[shared:] for row in rows]
        ids = nn.utils.rnn.pad_sequence(rests, batch_first=True)  # padding is read last: no mask
        ends = [len(rest) - 1 for rest in rests]
        logits = self.network(input_ids=ids, **{name: cache}).logits[range(many), ends]
        probabilities: Tensor = logits.float().softmax(-1)[:, self.token]
        return probabilities


def _shared(rows: Sequence[Tensor]) -> int:
    """How many tokens all rows begin with, less than the shortest has."""
    shortest = min(map(len, rows))
    same = torch.stack([(row[:shortest] == rows[0][:shortest]) for row in rows]).all(0)
    return min(int(same.long().cumprod(0).sum()), shortest - 1)
