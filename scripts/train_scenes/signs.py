"""signs, a model that writes: the recipe and the world of `base.py`'s trainer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_scenes import base
from train_scenes.evaluate import generate, save_grid
from train_scenes.generator import Generator, GeneratorRecipe, TextSize, TransformerSize
from train_scenes.lettering import HEIGHT, NUM_LABELS, WIDTH, render, training_signs
from train_scenes.model import build_letter_tokenizer
from train_scenes.recipes import Call
from train_scenes.vae import VaeRecipe, VaeSize
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

    defaults: Call = SignCall()
    probe: base.Probe = base.Probe(every=1000, per_kind=12, final_per_kind=0)
    data: base.Data = base.Data(images=60_000)
    vae: VaeRecipe = VaeRecipe(model=VaeSize(channels=(16, 32, 48)), batch=12, steps=1500, noise=0.2)
    generator: GeneratorRecipe = GeneratorRecipe(
        text=TextSize(width=96, layers=2, heads=3),
        transformer=TransformerSize(layers=5, heads=4, head_dim=32, patch=2),
        batch=32,
        steps=6000,
        decay_steps=1500,
    )


def build_tokenizer() -> Any:
    """Each letter in quotes is a token, and each other word."""
    return build_letter_tokenizer(
        (*TEMPLATE, *COLORS), LETTERS, len(["a", "red", "sign", "that", "says", "in", "white"]) + 2 + MAX_LETTERS
    )


def _draw(n: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str]]:
    signs = training_signs(n, rng)
    return *render(signs, rng), [caption(sign) for sign in signs]


def _look(pipe: Any, call: Call, per_kind: int, seed: int, grid: Path) -> str:
    prompts = sample_prompts(per_kind * len(KINDS), seed)
    images = generate(pipe, prompts, call, seed=seed)
    np.savez(
        grid.with_suffix(".npz"), im=np.rint(images * 255).astype(np.uint8), words=[p.split('"')[1] for p in prompts]
    )
    save_grid(images, len(KINDS), grid)
    return str(grid)


def _finished(model: Generator, tokenizer: Any) -> Generator:
    return copy.deepcopy(model).half().float()


SIGNS = base.World(build_tokenizer, NUM_LABELS, _draw, _look, weights_path, _finished)


def run(recipe: Recipe, out: Path, device: str = "cpu", decay_now: int | None = None, install: bool = False) -> None:
    """As `base.run`."""
    base.run(recipe, out, device, decay_now, install, SIGNS)
