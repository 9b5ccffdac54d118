"""Trains the few-step model: pairs, training, export, accuracy. The same call goes on where it was stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tqdm import tqdm

from ttsnap.files.settings import to_json
from ttsnap.files.writing import write_json
from ttsnap.scenes.model import build_blank_tokenizer, build_tokenizer
from ttsnap.scenes.training.base.evaluate import evaluate, load, table
from ttsnap.scenes.training.base.export import export
from ttsnap.scenes.training.parts import Pipeline, Transformer
from ttsnap.scenes.training.turbo.pairs import make
from ttsnap.scenes.training.turbo.recipe import TurboRecipe
from ttsnap.scenes.training.turbo.trainer import TurboTrainer, errors

_FINAL_SEED = 1000
_CALLS = (1, 2, 4, 8)
"""Calls in which the errors on the way are taken."""


def train(recipe: TurboRecipe, out: Path, decay_now: int | None = None) -> Path:
    """Run what is left of the recipe; returns the exported folder.

    decay_now: finish early: decay the learning rate over the next so many steps from the last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", to_json(recipe))
    pipe = load()
    pairs = make(load(), recipe, out / "pairs")
    held, trained = pairs.part(0, recipe.held), pairs.part(recipe.held, len(pairs))
    trainer = TurboTrainer(pipe, trained, recipe)
    checkpoint = out / "turbo.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    if decay_now is not None:
        trainer.decay_from_here(decay_now)
    began, mean = time.perf_counter(), float("nan")
    bar = tqdm(initial=trainer.step, total=trainer.recipe.steps, desc="turbo", unit="step", mininterval=10)
    for loss in trainer.losses():
        mean = loss if mean != mean else 0.98 * mean + 0.02 * loss
        bar.update()
        last = trainer.step == trainer.recipe.steps
        if last or trainer.step % recipe.look_every == 0:
            found = errors(pipe, trainer.ema, held, _CALLS, bf16=recipe.bf16)
            line = {"step": trainer.step, "loss": round(mean, 5), "seconds": round(time.perf_counter() - began)}
            with (out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({**line, "errors": found}) + "\n")
        if last or trainer.step % recipe.save_every == 0:
            trainer.save(checkpoint)
    bar.close()
    folder = out / "pipeline"
    turbo = assembled(pipe, trainer.ema, recipe)
    export(turbo, folder, recipe.defaults)
    if recipe.final_per_kind:
        rows = evaluate(turbo, recipe.defaults, recipe.final_per_kind, seed=_FINAL_SEED, grid=out / "samples.png")
        (out / "accuracy.md").write_text(table(rows) + "\n")
        print(table(rows), flush=True)
    return folder


def assembled(pipe: Pipeline, net: Transformer, recipe: TurboRecipe) -> Pipeline:
    """The base pipeline with this network, rounded to half precision, and a scheduler for few steps.

    Without `shift_terminal` the stock scheduler's last call is at a noise level of 0.001, where nothing is left to do.
    """
    pipe.transformer = net.half().float()
    pipe.tokenizer = pipe.tokenizer_2 = build_tokenizer()  # as new: one that was used saves its padding
    pipe.tokenizer_3 = build_blank_tokenizer()
    terminal = 1 / recipe.defaults.num_inference_steps
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift_terminal=terminal)
    return pipe
