"""The embedded world: captions, a renderer, an exact checker, and a tiny text-to-image model of it.

Importing this package needs numpy and scipy only; the model lives in `ttsnap.scenes.model`.
"""

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
from .weights_folder import DEFAULTS_FILE, defaults, draft_path, turbo_path, weights_path

__all__ = [
    "DEFAULTS_FILE",
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
    "defaults",
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
