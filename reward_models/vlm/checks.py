"""What rewards of this room check before they score."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from ttsnap.reward_models.preprocess import check_images

from ttsnap.files.reading import printable


def check_rows(name: str, needs: frozenset[str], images: Tensor, prompts: Sequence[str], source: Tensor | None) -> None:
    """ValueError unless there are as many prompts, and sources where the reward needs them, as images or videos."""
    video = "video" in needs
    if video and images.ndim != 5:
        raise ValueError(f"{name} scores videos (N, T, 3, H, W), got {tuple(images.shape)}")
    check_images(images.flatten(0, 1) if video else images)
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts for {len(images)} images; give one prompt per image")
    if "source" in needs:
        if source is None or len(source) != len(images):
            given = "none" if source is None else f"{len(source)} for {len(images)} images"
            raise ValueError(f"{name} compares each image with the one that was edited, its source; got {given}")
        check_images(source)


def check_prompt(prompt: str, special: frozenset[str], name: str) -> None:
    """ValueError for a prompt with one of the tokenizer's `special` tokens, which would not be read as text.

    Another reward token, say, would be scored in place of the one that belongs to the image.
    """
    for token in special:
        if token in prompt:
            raise ValueError(f"{name} cannot read a prompt that holds {token!r}; leave it out: {printable(prompt):.60}")
