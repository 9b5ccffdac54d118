"""What each model is asked: the files of prompts/, with {text_prompt} in place of the prompt or the instruction.

A model that was trained with one wording scores badly by another, so each file is its authors', spaces at the ends of
lines and misspellings included. Their sources:

hpsv3.txt: INSTRUCTION and prompt_with_special_token of hpsv3/dataset/data_collator_qwen.py, hpsv3 1.0.0 (PyPI).
video_align.txt: DETAILED_PROMPT_WITH_SPECIAL_TOKEN of prompt_template.py, github.com/KlingAIResearch/VideoAlign.
edit_reward_following.txt, edit_reward_quality.txt: INSTRUCTION_EDIT_FOLLOWING and INSTRUCTION_EDIT_QUALITY of
EditReward/dataset/prompts.py, each with prompt_with_special_token of data_collator_qwen_edit.py beside it,
github.com/TIGER-AI-Lab/EditReward.
"""

from __future__ import annotations

from importlib.resources import files

from ttsnap.files.reading import printable

PLACE = "{text_prompt}"


def template(name: str) -> str:
    """The text of prompts/`name`.txt."""
    return (files(__package__) / "prompts" / f"{name}.txt").read_bytes().decode()


def fill(text: str, prompt: str) -> str:
    """A template with the prompt in its place."""
    return text.replace(PLACE, prompt)


def check_prompt(prompt: str, special: frozenset[str], name: str) -> None:
    """ValueError for a prompt with one of the tokenizer's `special` tokens, which would not be read as text.

    Another reward token, say, would be scored in place of the one that belongs to the image.
    """
    for token in special:
        if token in prompt:
            raise ValueError(f"{name} cannot read a prompt that holds {token!r}; leave it out: {printable(prompt):.60}")
