"""A vision-language model that is asked questions about what it is shown: what both kinds of such rewards share.

Each question is a file of prompts/, with {text_prompt} in place of the prompt or the instruction. A model that was
trained with one wording scores badly by another, so each file is its authors', spaces at the ends of lines and
misspellings included. Their sources:

hpsv3.txt: INSTRUCTION and prompt_with_special_token of hpsv3/dataset/data_collator_qwen.py, hpsv3 1.0.0 (PyPI).
video_align.txt: DETAILED_PROMPT_WITH_SPECIAL_TOKEN of prompt_template.py, github.com/KlingAIResearch/VideoAlign.
edit_reward_following.txt, edit_reward_quality.txt: INSTRUCTION_EDIT_FOLLOWING and INSTRUCTION_EDIT_QUALITY of
EditReward/dataset/prompts.py, each with prompt_with_special_token of data_collator_qwen_edit.py beside it,
github.com/TIGER-AI-Lab/EditReward.
edit_score_following.txt, edit_score_quality.txt: SC_prompt and PQ_prompt of the class EditScore of editscore 0.2 (PyPI)
with its score_range of 25.
unified_reward.txt: inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py,
github.com/CodeGoat24/UnifiedReward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files

import torch
from torch import Tensor, nn
from ttsnap.reward_models.preprocess import check_images

from ttsnap.files.reading import printable
from ttsnap.profiling.flops import count_flops
from ttsnap.rewards.reward_model import RewardModel

PLACE = "{text_prompt}"


class AskedVLM(RewardModel):
    """A vision-language model that is asked `questions` about what it is shown. Subclasses say how it answers.

    network: frozen, on its device.
    special: its tokenizer's added tokens, which no prompt may hold.
    batch_size: most rows of a forward pass.
    """

    heavy = True
    weights = ""
    """The hub id of the published weights."""
    backbone = ""
    """The hub id of the model that they were trained from."""
    questions: tuple[str, ...] = ()
    """What is asked, in order: names of prompts."""
    network: nn.Module

    def __init__(self, network: nn.Module, special: frozenset[str], batch_size: int) -> None:
        self.network, self._special, self.batch_size = network.eval().requires_grad_(False), special, batch_size

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt with one of the tokenizer's added tokens, which would not be read as text.

        Another reward token, say, would be scored in place of the one that belongs to the image.
        """
        for prompt in prompts:
            for token in self._special:
                if token in prompt:
                    shown = f"{printable(prompt):.60}"
                    raise ValueError(f"{self.name} cannot read a prompt that holds {token!r}; leave it out: {shown}")

    @cached_property
    def flops(self) -> float:
        """FLOPs of one image or video, counted on one call; answers of another length take more or less."""
        trial = self.trial_image()
        source = {"source": trial} if "source" in self.needs else {}
        return count_flops(lambda: self(trial, [self.example], None, **source))

    def trial_image(self) -> Tensor:
        return torch.full((1, 3, 448, 448), 0.4, device=self.device)

    def check_rows(self, images: Tensor, prompts: Sequence[str], source: Tensor | None) -> None:
        """ValueError unless there are as many prompts, and sources where the reward needs them, as images or videos,
        and it can read the prompts."""
        video = "video" in self.needs
        if video and images.ndim != 5:
            raise ValueError(f"{self.name} scores videos (N, T, 3, H, W), got {tuple(images.shape)}")
        check_images(images.flatten(0, 1) if video else images)
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images; give one prompt per image")
        if "source" in self.needs:
            if source is None or len(source) != len(images):
                given = "none" if source is None else f"{len(source)} for {len(images)} images"
                raise ValueError(
                    f"{self.name} compares each image with the one that was edited, its source; got {given}"
                )
            check_images(source)
        self.check(prompts)

    def question(self, number: int, prompt: str) -> str:
        """A question about this prompt."""
        return fill(self._templates[number], prompt)

    @cached_property
    def _templates(self) -> list[str]:
        return [template(name) for name in self.questions]


def template(name: str) -> str:
    """The text of prompts/`name`.txt."""
    return (files(__package__) / "prompts" / f"{name}.txt").read_bytes().decode()


def fill(text: str, prompt: str) -> str:
    """A template with the prompt in its place."""
    return text.replace(PLACE, prompt)
