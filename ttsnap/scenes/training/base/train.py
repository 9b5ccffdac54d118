"""Trains the base model: data, autoencoder, latents, generator, export, evaluation.

Each stage is skipped if the folder already holds its result, and the generator resumes from its last checkpoint, so
the same call continues an interrupted run.
"""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from ttsnap.files.settings import to_json
from ttsnap.files.writing import write_whole
from ttsnap.scenes.model import build_tokenizer, tokenize
from ttsnap.scenes.training.base.data import make_data
from ttsnap.scenes.training.base.evaluate import evaluate, table
from ttsnap.scenes.training.base.export import build_pipeline, export, finished, swap_in
from ttsnap.scenes.training.base.recipe import BaseRecipe
from ttsnap.scenes.training.base.trainer import Examples, Trainer, run
from ttsnap.scenes.training.base.vae import encode, train_vae
from ttsnap.scenes.training.parts import Vae

_FINAL_SEED = 1000
"""Of the pictures in the last table: others than those that are looked at on the way."""


def prepare(recipe: BaseRecipe, out: Path, device: torch.device) -> tuple[Vae, torch.Tensor]:
    """Data, autoencoder and scaled latents (N, C, 8, 8) fp16, each made once."""
    folder = out / "data"
    if not (folder / "captions.txt").exists():
        make_data(folder, recipe.data.images, recipe.data.seed, recipe.data.cell)
    images = np.load(folder / "images.npy", mmap_mode="r")
    if not (out / "vae").exists():
        began = time.perf_counter()
        trained = train_vae(recipe.vae, images, np.load(folder / "labels.npy"), recipe.seed, device)
        trained.save_pretrained(out / "vae.new")
        os.replace(out / "vae.new", out / "vae")
        print(f"autoencoder: {time.perf_counter() - began:.0f} s", flush=True)
    vae: Vae = AutoencoderKL.from_pretrained(out / "vae").to(device).eval()
    cache = out / "latents.npy"
    if not cache.exists():
        raw = encode(vae, images, device).float()
        scaled = ((raw - vae.config.shift_factor) * vae.config.scaling_factor).half().numpy()
        write_whole(cache, lambda file: np.save(file, scaled))
    return vae, torch.from_numpy(np.load(cache))


def examples(out: Path, tokenizer: CLIPTokenizer, latents: torch.Tensor) -> Examples:
    """What `prepare` left in `out`, with its captions as tokens, which are made once."""
    cache = out / "tokens.npy"
    if not cache.exists():
        captions = (out / "data" / "captions.txt").read_text().splitlines()
        np.save(cache, tokenize(tokenizer, captions).numpy().astype(np.uint8))
    labels = torch.from_numpy(np.load(out / "data" / "labels.npy"))
    return Examples(latents, labels, torch.from_numpy(np.load(cache)), tokenize(tokenizer, [""])[0])


def train(recipe: BaseRecipe, out: Path, device: torch.device, decay_now: int | None = None) -> Path:
    """Run what is left of the recipe; returns the exported folder.

    decay_now: finish early: decay the learning rate over the next so many steps from the last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(to_json(recipe), indent=2) + "\n")
    vae, latents = prepare(recipe, out, device)
    tokenizer = build_tokenizer()
    trainer = Trainer(recipe.generator, tokenizer, examples(out, tokenizer, latents), recipe.seed, device)
    checkpoint = out / "generator.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    if decay_now is not None:
        trainer.decay_from_here(decay_now)

    def look(trainer: Trainer) -> None:
        if trainer.step % recipe.probe.every:
            return
        pipe = build_pipeline(trainer.ema, vae, tokenizer, recipe.shift)
        rows = evaluate(pipe, recipe.defaults, recipe.probe.per_kind, grid=out / f"samples_{trainer.step:06d}.png")
        told = " ".join(f"{kind} {row.strict:.2f}/{row.soft:.2f}" for kind, row in rows.items())
        print(f"\nstep {trainer.step}: strict/soft {told}", flush=True)

    began = time.perf_counter()
    run(trainer, checkpoint, recipe.save_every, look)
    print(f"generator: {time.perf_counter() - began:.0f} s in this run", flush=True)
    pipe = build_pipeline(finished(trainer.ema, tokenizer), vae, tokenizer, recipe.shift)
    folder = out / "pipeline"
    export(pipe, folder, recipe.defaults)
    if recipe.probe.final_per_kind:
        grid = out / "samples_final.png"
        rows = evaluate(pipe, recipe.defaults, recipe.probe.final_per_kind, seed=_FINAL_SEED, grid=grid)
        (out / "accuracy.md").write_text(table(rows) + "\n")
        print(table(rows), flush=True)
    return folder


def install(folder: Path, over: Path) -> None:
    """Copy an exported folder over a packaged one."""
    copy = over.with_name(f"{over.name}.new")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    swap_in(copy, over)
