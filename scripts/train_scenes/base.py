"""The base model: data, autoencoder, latents, generator (about 25 minutes on two idle cores), export, evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm
from transformers import CLIPTokenizer

from train_scenes.evaluate import evaluate
from train_scenes.export import finish
from train_scenes.generator import Examples, GeneratorRecipe, GeneratorTrainer, build_pipeline, finished
from train_scenes.model import (
    build_tokenizer,
    tokenize,
)
from train_scenes.recipes import Call
from train_scenes.stored import kept, training_specs
from train_scenes.vae import VaeRecipe, encode, scaled, train_vae
from ttsnap.files.settings import Count, Natural, Positive, Settings, to_json
from ttsnap.files.writing import write_json
from ttsnap.scenes import weights_path
from ttsnap.scenes.grammar import caption
from ttsnap.scenes.render import IMAGE_SIZE, NUM_LABELS, render

_CHUNK = 2000
"""Pictures that are rendered at once."""


@dataclass(frozen=True)
class Probe(Settings):
    """How often the model's pictures are checked on the way: every so many steps, `per_kind` captions of each kind.

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


def make_data(data: Data) -> dict[str, Any]:
    """Images (N, 3, 32, 32) uint8, labels (N, 32 / cell, 32 / cell) uint8 and N captions."""
    rng = np.random.default_rng(data.seed)
    cells = IMAGE_SIZE // data.cell
    images = torch.empty(data.images, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    labels = torch.empty(data.images, cells, cells, dtype=torch.uint8)
    captions: list[str] = []
    for start in tqdm(range(0, data.images, _CHUNK), desc="data", unit="chunk"):
        stop = min(start + _CHUNK, data.images)
        specs = training_specs(stop - start, rng)
        pictures, maps = render(specs, rng, labels=True)
        images[start:stop] = torch.from_numpy(np.rint(pictures * 255).astype(np.uint8))
        labels[start:stop] = torch.from_numpy(pool_labels(maps, data.cell))
        captions += map(caption, specs)
    return {"images": images, "labels": labels, "captions": captions}


def pool_labels(maps: np.ndarray, cell: int) -> np.ndarray:
    """Label maps (N, H, W) coarsened to cells: a cell takes its most common object if that fills a quarter of it."""
    n, h, w = maps.shape
    cells = maps.reshape(n, h // cell, cell, w // cell, cell).transpose(0, 1, 3, 2, 4).reshape(-1, cell * cell)
    counts = np.stack([(cells == label).sum(1) for label in range(NUM_LABELS)], 1)
    best = counts[:, 1:].argmax(1) + 1
    out = np.where(counts[np.arange(len(cells)), best] * 4 >= cell * cell, best, 0)
    return out.reshape(n, h // cell, w // cell).astype(np.uint8)


def prepare(recipe: Recipe, out: Path, tokenizer: CLIPTokenizer, device: torch.device) -> tuple[Any, Examples]:
    """The autoencoder and what the generator learns from, each made once."""
    made_by: dict[str, Any] = {"data": to_json(recipe.data)}
    data = kept(out / "data.pt", made_by, lambda: make_data(recipe.data))
    if not (out / "vae").exists():
        trained = train_vae(recipe.vae, data["images"], data["labels"], recipe.seed, device)
        trained.save_pretrained(out / "vae.new")
        os.replace(out / "vae.new", out / "vae")
    vae: Any = AutoencoderKL.from_pretrained(out / "vae").to(device).eval()
    latents = kept(
        out / "latents.pt",
        {**made_by, "vae": to_json(recipe.vae), "seed": recipe.seed},
        lambda: {"latents": scaled(vae, encode(vae, data["images"], device).float()).half()},
    )
    ids = tokenize(tokenizer, data["captions"]).to(torch.uint8)
    return vae, Examples(latents["latents"], data["labels"], ids, tokenize(tokenizer, [""])[0])


def run(recipe: Recipe, out: Path, device: str = "cpu", decay_now: int | None = None, install: bool = False) -> None:
    """Run what is left of the recipe: what the folder already holds is skipped."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", to_json(recipe))
    tokenizer, where = build_tokenizer(), torch.device(device)
    vae, examples = prepare(recipe, out, tokenizer, where)
    trainer = GeneratorTrainer(recipe.generator, tokenizer, examples, recipe.seed, where)

    def look() -> None:
        if trainer.step % recipe.probe.every == 0:
            pipe = build_pipeline(trainer.ema, vae, tokenizer, recipe.shift)
            rows = evaluate(pipe, recipe.defaults, recipe.probe.per_kind, grid=out / f"samples_{trainer.step:06d}.png")
            shown = " ".join(f"{kind} {row.strict:.2f}/{row.soft:.2f}" for kind, row in rows.items())
            print(f"\nstep {trainer.step}: strict/soft {shown}", flush=True)

    trainer.run("generator", out / "generator.pt", recipe.save_every, decay_now=decay_now, look=look)
    pipe = build_pipeline(finished(trainer.ema, tokenizer), vae, tokenizer, recipe.shift)
    over = weights_path() if install else None
    finish(pipe, out, recipe.defaults, recipe.probe.final_per_kind, "samples_final.png", over)
