"""The world of things: captions of cats, cars and pizzas on grass, sand or snow, and the packaged
models of it.

Importing this package needs numpy only. `scripts/train_worlds` trained the models;
docs/embedded_model.md describes them.
"""

from pathlib import Path

from ttsnap.scenes.grammar import HARD_KINDS, KINDS

from .grammar import BACKGROUNDS, NOUNS, UNSEEN_KINDS, caption, parse, sample_prompts, sample_spec

__all__ = [
    "BACKGROUNDS",
    "FOLDER",
    "HARD_KINDS",
    "KINDS",
    "NOUNS",
    "UNSEEN_KINDS",
    "caption",
    "draft_path",
    "parse",
    "sample_prompts",
    "sample_spec",
    "weights_path",
]

FOLDER = Path(__file__).parent
"""Where the packaged models lie, each in a folder."""


def weights_path() -> Path:
    """The diffusers folder of the trained model."""
    return FOLDER / "weights"


def draft_path() -> Path:
    """The draft of the trained model: a LoRA that guesses where its sampler will end
    (docs/drafts.md)."""
    return FOLDER / "draft"
