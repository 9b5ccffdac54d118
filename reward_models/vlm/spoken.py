"""A vision-language model that writes its scores in words, as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ttsnap.files.reading import read_object
from ttsnap.reward_models.preprocess import to_levels
from ttsnap.reward_models.vlm.model import RENAMED, AskedVLM
from ttsnap.reward_models.weights import (
    adapter_scale,
    locate,
    merge_adapters,
    pretrained,
    read_weights,
    renamed,
)

SEED = 42
"""The first seed of sampled answers, as in EditScore."""
ADAPTER = "adapter_config.json"
"""Peft's settings, beside adapter_model.safetensors."""


class SpokenVLM(AskedVLM):
    """A vision-language model that answers `questions` in words. Subclasses read the score in its
    answers.

    network: a model of transformers that generates text. answer_tokens: most tokens of an answer.
    temperature: 0 takes the likeliest token; otherwise tokens are sampled row by row from one seed,
    so that no row changes another's score.
    passes: answers to each question, with consecutive seeds. The score is the mean over readable
    passes, or nan: such images rank last.
    """

    def __init__(
        self,
        network: Any,
        processor: Any,
        *,
        batch_size: int = 4,
        answer_tokens: int = 512,
        temperature: float = 0.0,
        passes: int = 1,
    ) -> None:
        if min(batch_size, answer_tokens, passes) < 1 or not temperature >= 0:
            given = f"{batch_size}, {answer_tokens}, {passes} and {temperature}"
            wanted = (
                "batch_size, answer_tokens and passes must be at least 1, temperature at least 0"
            )
            raise ValueError(f"{wanted}, got {given}")
        if passes > 1 and not temperature:
            raise ValueError(
                f"{passes} passes give the same answers at temperature 0; set a temperature, such"
                " as 0.7"
            )
        super().__init__(network, processor, batch_size=batch_size)
        self.answer_tokens = answer_tokens
        self.temperature = temperature
        self.passes = passes
        # Answers begin behind the last place of every row.
        processor.tokenizer.padding_side = "left"

    @classmethod
    def load(
        cls, source: str, dtype: torch.dtype, *, backbone: str | Path | None = None, **options: Any
    ) -> Self:
        """source: a model in safetensors, or low-rank adapters (peft) of `backbone`."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        adapters = _adapters(source)
        whole = str(backbone or cls.backbone) if adapters else source
        network = pretrained(AutoModelForImageTextToText, whole, dtype=dtype, use_safetensors=True)
        if adapters:
            _add(network, *adapters, source)
        return cls(network, pretrained(AutoProcessor, whole), **options)

    def read(self, answers: Sequence[str]) -> float:
        """The score in one image's answers, one to each question; nan where they have none."""
        raise NotImplementedError

    def show(self, question: int, images: Tensor, source: Tensor | None) -> list[Tensor]:
        """The images of a question, in order, each (N, 3, h, w) levels 0..255."""
        return [to_levels(images)]

    def score(self, images: Tensor, prompts: Sequence[str], source: Tensor | None = None) -> Tensor:
        scores = torch.empty(self.passes, len(images), device=self.device)
        for passed, row in enumerate(scores):
            each = range(len(self.questions))
            answers = [self.answers(question, images, prompts, source, passed) for question in each]
            row.copy_(torch.tensor([self.read(one) for one in zip(*answers, strict=True)]))
        return scores.nanmean(0)

    @torch.no_grad()
    def answers(
        self,
        question: int,
        images: Tensor,
        prompts: Sequence[str],
        source: Tensor | None = None,
        passed: int = 0,
    ) -> list[str]:
        """The answers to a question about each row. passed: earlier passes, which moves the seed of
        sampled answers."""
        shown = self.show(question, images, source)
        texts = [self.layout(self.question(question, prompt), len(shown)) for prompt in prompts]
        size = 1 if self.temperature else self.batch_size
        out = list[str]()
        how: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            how = {"do_sample": True, "temperature": self.temperature, "top_p": 0.9, "top_k": 20}
        tokenizer = self.processor.tokenizer
        for i in range(0, len(texts), size):
            pictures = [
                list(row)
                for row in zip(
                    *(levels[i : i + size].byte().cpu() for levels in shown), strict=True
                )
            ]
            inputs = self.processor(
                images=pictures, text=texts[i : i + size], padding=True, return_tensors="pt"
            )
            with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
                torch.manual_seed(SEED + passed)
                made = self.network.generate(
                    **inputs.to(self.device),
                    max_new_tokens=self.answer_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                    **how,
                )
            new = made[:, inputs["input_ids"].shape[1] :]
            out += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
        return out


def _adapters(source: str) -> tuple[dict[str, Tensor], float] | None:
    """The tensors of adapters and their factor; None where a folder or hub id holds no adapters."""
    try:
        path = locate(source, [ADAPTER])
    except ValueError:
        return None
    settings = read_object(path, what="settings of adapters")
    unread = [
        name
        for name in ("alpha_pattern", "rank_pattern", "modules_to_save", "use_dora")
        if settings.get(name)
    ]
    if unread:
        raise ValueError(
            f"the adapters in {source} have {' and '.join(unread)}, which is not read here; merge"
            " them first"
        )
    return read_weights(source, ["adapter_model.safetensors"]), adapter_scale(settings)


@torch.no_grad()
def _add(network: nn.Module, adapters: dict[str, Tensor], scale: float, source: str) -> None:
    """Add adapters to the weights of the network."""
    weights = {name.removeprefix("model."): value for name, value in network.named_parameters()}
    names = {name: renamed(name.removeprefix("base_model.model."), RENAMED) for name in adapters}
    targets = {name: f"{new.partition('.lora_')[0]}.weight" for name, new in names.items()}
    absent = [
        name for name, target in targets.items() if ".lora_" not in name or target not in weights
    ]
    if absent:
        raise ValueError(
            f"the adapters in {source} are for another model: it has nothing for {absent[0]}"
        )
    plain = {target: weights[target] for target in targets.values()}
    merged = merge_adapters(
        {**plain, **{names[name]: value for name, value in adapters.items()}}, scale
    )
    for target, weight in plain.items():
        weight.copy_(merged[target])
