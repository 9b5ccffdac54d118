"""things, a model that draws things on grass, sand and snow: the recipe and the world of `base.py`'s
trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_worlds import base
from train_worlds.evaluate import generate, save_grid
from train_worlds.generator import GeneratorRecipe, TransformerSize, finished
from train_worlds.landscape import IMAGE_SIZE, NUM_LABELS, render
from train_worlds.model import build_tokenizer
from train_worlds.recipes import Call
from train_worlds.stored import training_specs
from train_worlds.vae import VaeRecipe, VaeSize
from ttsnap.scenes.grammar import KINDS
from ttsnap.things import weights_path
from ttsnap.things.grammar import THINGS


@dataclass(frozen=True)
class ThingsCall(Call):
    """Arguments of the pipeline call."""

    height: int = IMAGE_SIZE
    width: int = IMAGE_SIZE


@dataclass(frozen=True)
class Recipe(base.Recipe):
    """The model of things."""

    defaults: ThingsCall = ThingsCall()
    probe: base.Probe = base.Probe(every=500, per_kind=8, final_per_kind=24)
    data: base.Data = base.Data(images=48_000, cell=8)
    vae: VaeRecipe = VaeRecipe(
        model=VaeSize(channels=(8, 24, 48, 96), groups=4),
        batch=16,
        steps=3600,
        bf16=True,
        noise=0.25,
        window=8,
        whole=600,
    )
    generator: GeneratorRecipe = GeneratorRecipe(
        transformer=TransformerSize(patch=2), steps=4000, decay_steps=1200, compile=False
    )


def _draw(
    n: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str]]:
    specs = training_specs(n, rng, grammar=THINGS)
    images, labels, _ = render(specs, rng)
    return images, labels, [THINGS.caption(spec) for spec in specs]


def _look(pipe: Any, call: Call, per_kind: int, seed: int, grid: Path) -> str:
    # of single things too few are held out
    prompts = THINGS.sample_prompts(per_kind * len(KINDS), seed, KINDS, held_out=None)
    save_grid(generate(pipe, prompts, call, seed=seed), len(KINDS), grid, scale=1)
    return str(grid)


WORLD = base.World(
    lambda: build_tokenizer(THINGS.words),
    NUM_LABELS,
    _draw,
    _look,
    weights_path,
    "things",
    finished,
)


def run(
    recipe: Recipe,
    out: Path,
    device: str = "cpu",
    decay_now: int | None = None,
    install: bool = False,
) -> None:
    """As `base.run`."""
    base.run(recipe, out, device, decay_now, install, WORLD)
