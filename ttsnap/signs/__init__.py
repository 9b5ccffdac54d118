"""Signs: a world of words on plates, and the packaged model that writes them."""

from pathlib import Path

from .grammar import HARD_KINDS, KINDS, RGB, Sign, caption, parse, sample_prompts

__all__ = [
    "HARD_KINDS",
    "KINDS",
    "RGB",
    "Sign",
    "caption",
    "draft_path",
    "noise_aware_path",
    "parse",
    "sample_prompts",
    "weights_path",
]


def weights_path() -> Path:
    """The diffusers folder of the model that writes."""
    return Path(__file__).parent / "weights"


def draft_path() -> Path:
    """Its draft: a LoRA that guesses where its sampler will end."""
    return Path(__file__).parent / "draft"


def noise_aware_path() -> Path:
    """Its noise-aware reward: a network that predicts from unfinished latents what an OCR will
    say."""
    return Path(__file__).parent / "noise_aware"
