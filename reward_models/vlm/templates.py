"""What each model is asked: the files of prompts/, with {text_prompt} in place of the prompt or the instruction.

A model that was trained with one wording scores badly by another, so each file is its authors', spaces at the ends of
lines and misspellings included. Their sources:

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

from importlib.resources import files

PLACE = "{text_prompt}"


def template(name: str) -> str:
    """The text of prompts/`name`.txt."""
    return (files(__package__) / "prompts" / f"{name}.txt").read_bytes().decode()


def fill(text: str, prompt: str) -> str:
    """A template with the prompt in its place."""
    return text.replace(PLACE, prompt)
