"""A vision-language model that answers questions about images or videos: what both kinds of such
rewards share.

Each question is a file of prompts/, with {text_prompt} in place of the prompt or the instruction.
Files are their authors' to the character, misspellings and trailing spaces included: a model scores
badly by another wording than it was trained with. Sources:

- hpsv3.txt: INSTRUCTION and prompt_with_special_token of hpsv3/dataset/data_collator_qwen.py,
  hpsv3 1.0.0 (PyPI).
- video_align.txt: DETAILED_PROMPT_WITH_SPECIAL_TOKEN of prompt_template.py,
  github.com/KlingAIResearch/VideoAlign.
- edit_reward_following.txt, edit_reward_quality.txt: INSTRUCTION_EDIT_FOLLOWING and
  INSTRUCTION_EDIT_QUALITY of EditReward/dataset/prompts.py, each with prompt_with_special_token of
  data_collator_qwen_edit.py beside it, github.com/TIGER-AI-Lab/EditReward.
- edit_score_following.txt, edit_score_quality.txt: SC_prompt and PQ_prompt of the class EditScore
  of editscore 0.2 (PyPI) with its score_range of 25.
- unified_reward.txt:
  inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py,
  github.com/CodeGoat24/UnifiedReward.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from ttsnap.files.reading import printable
from ttsnap.reward_models.preprocess import Sight
from ttsnap.reward_models.scorer import NetworkReward

PLACE = "{text_prompt}"
RENAMED = ((r"^model\.(visual|language_model)\.", r"\1."), (r"^model\.", "language_model."))
"""To the names of transformers' models without a head, Qwen2VLModel and Qwen2_5_VLModel. Up to
transformers 4.51 the vision tower of a Qwen2-VL was `visual.` and the text model `model.`; later
both begin with `model.`."""


class AskedVLM(NetworkReward):
    """A vision-language model that is asked `questions` about images or videos. Subclasses say how
    it answers.

    processor: as transformers' AutoProcessor loads it. Its tokenizer's added tokens may stand in no
        prompt.
    """

    trained_dtype = torch.bfloat16
    trial_size = 448
    backbone = ""
    """The hub id of the model that the published weights were trained from."""
    questions: tuple[str, ...] = ()
    """Names of files in prompts/, in the order of the questions."""

    def __init__(
        self,
        network: nn.Module,
        processor: Any,
        preprocess: Sight | None = None,
        *,
        batch_size: int = 4,
    ) -> None:
        super().__init__(network, preprocess, batch_size=batch_size)
        self.processor = processor
        self._special = processor.tokenizer.get_added_vocab()
        self._templates = [template(name) for name in self.questions]

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt with one of the tokenizer's added tokens, which would not be read
        as text.

        A head would read a reward token in a prompt, say, in place of the image's.
        """
        for prompt in prompts:
            for token in self._special:
                if token in prompt:
                    shown = f"{printable(prompt):.60}"
                    raise ValueError(
                        f"{self.name} cannot read a prompt that holds {token!r}; leave it out:"
                        f" {shown}"
                    )

    def check_rows(self, images: Tensor, prompts: Sequence[str], source: Tensor | None) -> None:
        """As NetworkReward's, and `check`."""
        super().check_rows(images, prompts, source)
        self.check(prompts)

    def question(self, number: int, prompt: str) -> str:
        """A question about this prompt."""
        return self._templates[number].replace(PLACE, prompt)

    def layout(self, text: str, shown: int, kind: str = "image") -> str:
        """A question about `shown` images or videos, in the layout of the model's chats."""
        turn = [
            {
                "role": "user",
                "content": [*([{"type": kind}] * shown), {"type": "text", "text": text}],
            }
        ]
        return str(
            self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        )


def template(name: str) -> str:
    """The text of prompts/`name`.txt."""
    return (files(__package__) / "prompts" / f"{name}.txt").read_bytes().decode()
