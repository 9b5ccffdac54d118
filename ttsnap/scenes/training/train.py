"""The whole recipe in one command: data, autoencoder, latents, generator, export, evaluation.

``python -m ttsnap.scenes.training.train --config CONFIG --out DIR``

Each stage is skipped if DIR already holds its result, and the generator resumes from its last checkpoint, so the same
command continues an interrupted run. `--decay-now M` finishes early: it decays the learning rate over the next M steps.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL

from ttsnap.files.writing import write_whole
from ttsnap.scenes.model import build_tokenizer, tokenize
from ttsnap.scenes.training.data import make_data
from ttsnap.scenes.training.evaluate import evaluate, table
from ttsnap.scenes.training.export import build_pipeline, export, finished, swap_in
from ttsnap.scenes.training.generator import Trainer, run
from ttsnap.scenes.training.vae import encode, train_vae
from ttsnap.scenes.weights_folder import weights_path


def prepare(config: dict[str, Any], out: Path, device: torch.device) -> tuple[Any, torch.Tensor]:
    """Data, autoencoder and scaled latents (N, C, 8, 8) fp16, each made once."""
    folder = out / "data"
    data = config["data"]
    if not (folder / "captions.txt").exists():
        make_data(folder, data["images"], data["seed"], data["cell"])
    images = np.load(folder / "images.npy", mmap_mode="r")
    if not (out / "vae").exists():
        began = time.perf_counter()
        trained = train_vae(config["vae"], images, np.load(folder / "labels.npy"), config["seed"], device)
        trained.save_pretrained(out / "vae.new")
        os.replace(out / "vae.new", out / "vae")
        print(f"autoencoder: {time.perf_counter() - began:.0f} s", flush=True)
    vae: Any = AutoencoderKL.from_pretrained(out / "vae").to(device).eval()
    cache = out / "latents.npy"
    if not cache.exists():
        raw = encode(vae, images, device).float()
        scaled = ((raw - vae.config.shift_factor) * vae.config.scaling_factor).half().numpy()
        write_whole(cache, lambda file: np.save(file, scaled))
    return vae, torch.from_numpy(np.load(cache))


def train(config: dict[str, Any], out: Path, device: torch.device, decay_now: int | None = None) -> Path:
    """Run what is left of the recipe; returns the exported folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    vae, latents = prepare(config, out, device)
    tokenizer = build_tokenizer()
    tokens = out / "tokens.npy"
    if not tokens.exists():
        captions = (out / "data" / "captions.txt").read_text().splitlines()
        np.save(tokens, tokenize(tokenizer, captions).numpy().astype(np.uint8))
    trainer = Trainer(
        config["generator"],
        tokenizer,
        latents,
        torch.from_numpy(np.load(out / "data" / "labels.npy")),
        torch.from_numpy(np.load(tokens)),
        tokenize(tokenizer, [""])[0],
        config["seed"],
        device,
    )
    checkpoint = out / "generator.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    if decay_now is not None:
        trainer.decay_from_here(decay_now)
    probe = config["probe"]

    def on_step(trainer: Trainer) -> None:
        if trainer.step % probe["every"] == 0:
            look(trainer.step, probe)

    def look(step: int, probe: dict[str, Any]) -> None:
        pipe = build_pipeline(trainer.ema, vae, tokenizer, config["shift"])
        rows = evaluate(
            pipe,
            per_kind=probe["per_kind"],
            steps=config["defaults"]["num_inference_steps"],
            guidance=config["defaults"]["guidance_scale"],
            grid=out / f"samples_{step:06d}.png",
        )
        strict = " ".join(f"{k} {a:.2f}/{b:.2f}" for k, (a, _, b, _, _) in rows.items())
        print(f"\nstep {step}: strict/soft {strict}", flush=True)

    began = time.perf_counter()
    run(trainer, checkpoint, config["save_every"], on_step)
    print(f"generator: {time.perf_counter() - began:.0f} s in this run", flush=True)
    pipe = build_pipeline(finished(trainer.ema, tokenizer), vae, tokenizer, config["shift"])
    folder = out / "pipeline"
    export(pipe, folder, config["defaults"])
    if probe["final_per_kind"]:
        defaults = config["defaults"]
        rows = evaluate(
            pipe,
            per_kind=probe["final_per_kind"],
            steps=defaults["num_inference_steps"],
            guidance=defaults["guidance_scale"],
            seed=1000,
            grid=out / "samples_final.png",
        )
        (out / "accuracy.md").write_text(table(rows) + "\n")
        print(table(rows), flush=True)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m ttsnap.scenes.training.train", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("recipe.yaml"))
    parser.add_argument("--out", type=Path, required=True, help="folder for data, checkpoints, samples and the result")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decay-now", type=int, metavar="M", help="decay from the last checkpoint over M steps")
    parser.add_argument("--install", action="store_true", help="copy the result over the packaged weights")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = yaml.safe_load(args.config.read_text())
    folder = train(config, args.out, torch.device(args.device), args.decay_now)
    if args.install:
        copy = weights_path().with_name("weights.new")
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        swap_in(copy, weights_path())


if __name__ == "__main__":
    main()
