"""VQAScore with a vision-language model of transformers: P("Yes") to "does this figure show ...?".

Source: Lin et al., Evaluating Text-to-Visual Generation with Image-to-Text Generation (arXiv 2404.01291).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from ttsnap.reward_models.preprocess import check_images, to_levels
from ttsnap.reward_models.weights import explained

from ttsnap.rewards.reward_model import RewardModel

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


class VQAScore(RewardModel):
    """P(answer) in [0, 1] for the first token of the reply, over the whole vocabulary.

    Images go through the model's own processor, as 8-bit pictures. network and processor: as transformers'
    AutoModelForImageTextToText and AutoProcessor load them; question: with {} for the prompt.
    """

    name = "vqascore"
    heavy = True
    network: nn.Module

    def __init__(
        self, network: Any, processor: Any, *, question: str = QUESTION, answer: str = "Yes", batch_size: int = 8
    ) -> None:
        if "{}" not in question or batch_size < 1:
            raise ValueError(f"question needs a {{}} for the prompt and batch_size at least 1, got {question!r}")
        self.network, self.processor = network.eval().requires_grad_(False), processor
        self.question, self.batch_size = question, batch_size
        processor.tokenizer.padding_side = "left"  # The next token is read off the last place of every row.
        ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"the tokenizer has no token for the answer {answer!r}")
        self.token = int(ids[0])

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "Qwen/Qwen2.5-VL-7B-Instruct",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
    ) -> VQAScore:
        """A local folder or a hub id. ValueError where it cannot be loaded."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        source = str(name_or_path)
        network: nn.Module = explained(lambda: AutoModelForImageTextToText.from_pretrained(source, dtype=dtype), source)
        processor = explained(lambda: AutoProcessor.from_pretrained(source), source)
        return cls(network.to(device), processor, batch_size=batch_size)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Tensor:
        """images (N, 3, H, W) float in [0, 1], N prompts -> (N,) float32 on the network's device."""
        check_images(images, prompts)
        device = next(self.network.parameters()).device
        parts = [torch.zeros(0, device=device)]
        for i in range(0, len(images), self.batch_size):
            levels = to_levels(images[i : i + self.batch_size]).byte().permute(0, 2, 3, 1).cpu().numpy()
            texts = [self._chat(prompt) for prompt in prompts[i : i + self.batch_size]]
            pictures = [[Image.fromarray(array)] for array in levels]
            inputs = self.processor(images=pictures, text=texts, padding=True, return_tensors="pt").to(device)
            logits = self.network(**inputs).logits[:, -1].float()
            parts.append(logits.softmax(-1)[:, self.token])
        return torch.cat(parts)

    def _chat(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": self.question.replace("{}", prompt)}]
        turn = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
