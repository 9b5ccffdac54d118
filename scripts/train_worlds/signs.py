"""signs, a model that writes: the recipe and the world of `base.py`'s trainer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train_worlds import base
from train_worlds.evaluate import generate, save_grid
from train_worlds.generator import Generator, GeneratorRecipe, TextSize, TransformerSize
from train_worlds.lettering import HEIGHT, NUM_LABELS, WIDTH, render, training_signs
from train_worlds.model import build_letter_tokenizer
from train_worlds.recipes import Call
from train_worlds.vae import VaeRecipe, VaeSize
from ttsnap.files.writing import markdown
from ttsnap.reward_models.ocr import OCR
from ttsnap.signs import weights_path
from ttsnap.signs.grammar import COLORS, KINDS, LETTERS, MAX_LETTERS, caption, sample_prompts

TEMPLATE = ("a", "sign", "that", "says", "in")
"""Words of a prompt beside the colours and the word in quotes."""


@dataclass(frozen=True)
class SignCall(Call):
    """Arguments of the pipeline call."""

    height: int = HEIGHT
    width: int = WIDTH


@dataclass(frozen=True)
class Recipe(base.Recipe):
    """The model that writes."""

    defaults: SignCall = SignCall()
    probe: base.Probe = base.Probe(every=1000, per_kind=12, final_per_kind=24)
    data: base.Data = base.Data(images=60_000)
    vae: VaeRecipe = VaeRecipe(
        model=VaeSize(channels=(16, 32, 48)), batch=12, steps=1500, noise=0.2
    )
    generator: GeneratorRecipe = GeneratorRecipe(
        text=TextSize(width=96, layers=2, heads=3),
        transformer=TransformerSize(layers=5, heads=4, head_dim=32, patch=2),
        batch=32,
        steps=4191,
        decay_steps=1691,
    )


def build_tokenizer() -> Any:
    """Each letter in quotes is a token, and each other word."""
    colours, quotes = 2, 2
    longest = len(TEMPLATE) + colours + quotes + MAX_LETTERS
    return build_letter_tokenizer((*TEMPLATE, *COLORS), LETTERS, longest)


def _draw(
    n: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str]]:
    signs = training_signs(n, rng)
    return *render(signs, rng), [caption(sign) for sign in signs]


def _look(pipe: Any, call: Call, per_kind: int, seed: int, grid: Path) -> str:
    """How often words are right by an OCR, for each kind; without the extra `ocr` only the
    pictures."""
    prompts = sample_prompts(per_kind * len(KINDS), seed)
    images = generate(pipe, prompts, call, seed=seed)
    save_grid(images, len(KINDS), grid)
    try:
        scores = OCR("line")(torch.from_numpy(images), prompts).reshape(-1, len(KINDS)).numpy()
    except ValueError as error:
        return f"{grid}; how often it is right: {error}"
    right = (scores == 1).astype(float)
    columns = {**dict(zip(KINDS, right.T, strict=True)), "all": right.ravel()}
    cells = (
        (kind, f"{x.mean():.3f} ± {(x.mean() * (1 - x.mean()) / x.size) ** 0.5:.3f}")
        for kind, x in columns.items()
    )
    return markdown(("words", "right"), cells)


def _finished(model: Generator, tokenizer: Any) -> Generator:
    return copy.deepcopy(model).half().float()


SIGNS = base.World(build_tokenizer, NUM_LABELS, _draw, _look, weights_path, "ocr:line", _finished)


def run(
    recipe: Recipe,
    out: Path,
    device: str = "cpu",
    decay_now: int | None = None,
    install: bool = False,
) -> None:
    """As `base.run`."""
    base.run(recipe, out, device, decay_now, install, SIGNS)
