"""The embedded world: captions, a renderer, an exact checker, and the packaged models of it.

Importing this package needs numpy and scipy only. `scripts/train_worlds` trained the models;
docs/embedded_model.md describes them.
"""

from pathlib import Path

from .checker import Objects, check, detect, judge
from .grammar import (
    HARD_KINDS,
    KINDS,
    UNSEEN_KINDS,
    WORDS,
    Group,
    Spec,
    caption,
    is_held_out,
    parse,
    sample_prompts,
    sample_spec,
)
from .render import IMAGE_SIZE, render

__all__ = [
    "FOLDER",
    "HARD_KINDS",
    "IMAGE_SIZE",
    "KINDS",
    "UNSEEN_KINDS",
    "WORDS",
    "Group",
    "Objects",
    "Spec",
    "caption",
    "check",
    "detect",
    "draft_path",
    "is_held_out",
    "judge",
    "parse",
    "render",
    "sample_prompts",
    "sample_spec",
    "turbo_path",
    "weights_path",
]

FOLDER = Path(__file__).parent
"""Where the packaged models lie, each in a folder."""


def weights_path() -> Path:
    """The diffusers folder of the trained model."""
    return FOLDER / "weights"


def turbo_path() -> Path:
    """The diffusers folder of its few-step relative, which takes no guidance."""
    return FOLDER / "turbo"


def draft_path() -> Path:
    """The draft of the trained model: a LoRA that guesses where its sampler will end
    (docs/drafts.md)."""
    return FOLDER / "draft"
