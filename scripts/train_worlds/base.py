"""A world's base model: data, autoencoder, latents, generator, export, evaluation.

`Recipe` and `SCENES` are those of the scenes (about 25 minutes on two idle cores); `signs.py` has
those of the signs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from train_worlds.evaluate import accuracy_table, evaluate
from train_worlds.export import finish
from train_worlds.generator import (
    Examples,
    Generator,
    GeneratorRecipe,
    GeneratorTrainer,
    build_pipeline,
    finished,
)
from train_worlds.model import build_tokenizer, tokenize
from train_worlds.recipes import Call
from train_worlds.stored import kept, training_specs
from train_worlds.vae import VaeRecipe, encode, scaled, train_vae
from ttsnap.files.settings import Count, Natural, Positive, Settings, to_json
from ttsnap.files.writing import write_json
from ttsnap.scenes import weights_path
from ttsnap.scenes.grammar import caption
from ttsnap.scenes.render import NUM_LABELS, render

_CHUNK = 2000
"""Pictures that are rendered at once."""
SEED = 1000
"""Of the pictures in the last table: others than those that are looked at on the way."""


@dataclass(frozen=True)
class Probe(Settings):
    """How often the model's pictures are checked on the way: every so many steps, `per_kind`
    captions of each kind.

    final_per_kind: captions of each kind for the table at the end; 0 for none.
    """

    every: Count = 500
    per_kind: Count = 16
    final_per_kind: Natural = 64


@dataclass(frozen=True)
class Data(Settings):
    """Rendered pictures, their captions, and label maps in cells of `cell` x `cell` pixels."""

    images: Count = 300_000
    seed: Natural = 0
    cell: Count = 4


@dataclass(frozen=True)
class Recipe(Settings):
    """The base model: data, autoencoder, and generator (about 25 minutes on two idle cores).

    shift: of the sampler's noise levels.
    save_every: steps between the generator's checkpoints.
    """

    seed: Natural = 0
    shift: Positive = 1.0
    save_every: Count = 500
    defaults: Call = Call()
    probe: Probe = Probe()
    data: Data = Data()
    vae: VaeRecipe = VaeRecipe()
    generator: GeneratorRecipe = GeneratorRecipe()


@dataclass(frozen=True)
class World:
    """What a model learns to draw.

    Args:
        tokenizer: makes the tokenizer of its captions.
        num_labels: labels of its label maps, 0 for the background.
        draw: n pictures: images (n, 3, H, W) uint8, label maps (n, H, W) and captions.
        look: lines on how well a pipeline draws, by (pipe, call, pictures of each kind, seed, PNG
            to write).
        weights: the packaged folder.
        reward: by which searches with the model choose.
        finished: a copy of the generator as it will load.
    """

    tokenizer: Callable[[], Any]
    num_labels: int
    draw: Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray, list[str]]]
    look: Callable[[Any, Call, int, int, Path], str]
    weights: Callable[[], Path]
    reward: str
    finished: Callable[[Generator, Any], Generator]


def make_data(data: Data, world: World) -> dict[str, Any]:
    """Images (N, 3, H, W) uint8, labels (N, H / cell, W / cell) uint8 and N captions."""
    rng = np.random.default_rng(data.seed)
    chunks = []
    for start in tqdm(range(0, data.images, _CHUNK), desc="data", unit="chunk"):
        images, maps, captions = world.draw(min(_CHUNK, data.images - start), rng)
        labels = pool_labels(maps, data.cell, world.num_labels)
        chunks.append((torch.from_numpy(images), torch.from_numpy(labels), captions))
    images, labels, captions = zip(*chunks, strict=True)
    return {
        "images": torch.cat(images),
        "labels": torch.cat(labels),
        "captions": [x for part in captions for x in part],
    }


def pool_labels(maps: np.ndarray, cell: int, num_labels: int) -> np.ndarray:
    """Label maps (N, H, W) coarsened to cells: a cell takes its most common object if that fills a
    quarter of it."""
    n, h, w = maps.shape
    cells = (
        maps.reshape(n, h // cell, cell, w // cell, cell)
        .transpose(0, 1, 3, 2, 4)
        .reshape(-1, cell * cell)
    )
    counts = np.stack([(cells == label).sum(1) for label in range(num_labels)], 1)
    best = counts[:, 1:].argmax(1) + 1
    out = np.where(counts[np.arange(len(cells)), best] * 4 >= cell * cell, best, 0)
    return out.reshape(n, h // cell, w // cell).astype(np.uint8)


def prepare(
    recipe: Recipe, world: World, out: Path, tokenizer: Any, device: torch.device
) -> tuple[Any, Examples]:
    """The autoencoder and what the generator learns from, each made once."""
    made_by: dict[str, Any] = {"data": to_json(recipe.data)}
    data = kept(out / "data.pt", made_by, lambda: make_data(recipe.data, world))
    if not (out / "vae").exists():
        trained = train_vae(
            recipe.vae,
            data["images"],
            data["labels"],
            world.num_labels,
            recipe.seed,
            device,
            out / "vae.pt",
            recipe.save_every,
        )
        trained.save_pretrained(out / "vae.new")
        os.replace(out / "vae.new", out / "vae")
    vae: Any = AutoencoderKL.from_pretrained(out / "vae").to(device).eval()
    latents = kept(
        out / "latents.pt",
        {**made_by, "vae": to_json(recipe.vae), "seed": recipe.seed},
        lambda: {"latents": scaled(vae, encode(vae, data["images"], device).float()).half()},
    )
    ids = tokenize(tokenizer, data["captions"]).to(torch.uint8)
    null_ids = tokenize(tokenizer, [""])[0]
    return vae, Examples(latents["latents"], data["labels"], ids, null_ids, world.num_labels)


def run(
    recipe: Recipe,
    out: Path,
    device: str = "cpu",
    decay_now: int | None = None,
    install: bool = False,
    world: World | None = None,
) -> None:
    """Run what is left of the recipe: what the folder already holds is skipped. world: the scenes
    by default."""
    world = world or SCENES
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", to_json(recipe))
    tokenizer, where = world.tokenizer(), torch.device(device)
    vae, examples = prepare(recipe, world, out, tokenizer, where)
    trainer = GeneratorTrainer(recipe.generator, tokenizer, examples, recipe.seed, where)

    def look() -> None:
        if trainer.step % recipe.probe.every == 0:
            pipe = build_pipeline(trainer.ema, vae, tokenizer, recipe.shift)
            grid = out / f"samples_{trainer.step:06d}.png"
            said = world.look(pipe, recipe.defaults, recipe.probe.per_kind, 0, grid)
            print(f"\nstep {trainer.step}:\n{said}", flush=True)

    trainer.run(
        "generator", out / "generator.pt", recipe.save_every, decay_now=decay_now, look=look
    )
    pipe = build_pipeline(world.finished(trainer.ema, tokenizer), vae, tokenizer, recipe.shift)
    per_kind, grid = recipe.probe.final_per_kind, out / "samples_final.png"
    said = (lambda: world.look(pipe, recipe.defaults, per_kind, SEED, grid)) if per_kind else None
    defaults = {**to_json(recipe.defaults), "reward": world.reward}
    finish(pipe, out, defaults, said, world.weights() if install else None)


def _draw_scenes(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    specs = training_specs(n, rng)
    pictures, maps = render(specs, rng, labels=True)
    return np.rint(pictures * 255).astype(np.uint8), maps, [caption(spec) for spec in specs]


def _look_at_scenes(pipe: Any, call: Call, per_kind: int, seed: int, grid: Path) -> str:
    return accuracy_table(evaluate(pipe, call, per_kind, seed=seed, grid=grid))


SCENES = World(
    build_tokenizer, NUM_LABELS, _draw_scenes, _look_at_scenes, weights_path, "scenes", finished
)
