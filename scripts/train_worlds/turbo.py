"""The few-step model: the base model and its guidance, straightened so that a few calls without
guidance are enough.

It learns to go straight from a start, a noisy latent, to where the teacher's guided sampler ends
from there (arXiv 2209.03003). Most pairs start from pure noise, as the sampler does. The others
start from rendered pictures under fresh noise, so that the few-step model also knows states that a
stochastic sampler puts it in, off its own trajectories. Only the transformer is trained; the text
encoders and the autoencoder stay as they are.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train_worlds.base import SEED
from train_worlds.evaluate import accuracy_table, evaluate, load
from train_worlds.export import finish
from train_worlds.generator import encode_captions
from train_worlds.model import build_blank_tokenizer, build_tokenizer
from train_worlds.recipes import Call, Counts, FlowRecipe, Naturals
from train_worlds.stored import join, kept, training_specs
from train_worlds.training import Trainer, muon_and_adam
from train_worlds.vae import scaled
from train_worlds.zero_tokens import ZeroTokenAttention
from ttsnap.files.settings import (
    Count,
    Decay,
    Natural,
    NotNegative,
    Positive,
    Settings,
    Share,
    to_json,
)
from ttsnap.files.writing import write_json
from ttsnap.scenes import turbo_path
from ttsnap.scenes.grammar import caption
from ttsnap.scenes.render import render

_CALLS = (1, 2, 4, 8)
"""Calls in which the errors on the way are taken."""
_TEXTS = 256
"""Captions that are encoded at once."""


@dataclass(frozen=True)
class PairsRecipe(Settings):
    """The teacher's trajectories: where each starts, and where the guided sampler ends from there.

    from_noise: those that start from pure noise.
    from_renders: those that start from a rendered picture with fresh noise.
    starts: grid steps of the teacher at which renders are put, drawn at random.
    skipped: grid steps at which the teacher is not called; it goes straight on there.
    shard: trajectories in a file.
    batch: trajectories at once.
    """

    from_noise: Natural = 15_616
    from_renders: Natural = 4096
    starts: Counts = (2, 4, 6, 8, 10, 13, 16)
    skipped: Naturals = (11, 12, 14, 15, 17, 18, 19)
    shard: Count = 256
    batch: Count = 64
    seed: Natural = 0


@dataclass(frozen=True)
class Recipe(FlowRecipe):
    """How the base model is distilled: guidance and steps at once, by rectified flow on the
    teacher's own pairs.

    teacher: the guided call whose results are learned.
    defaults: the call that is recommended for the result; its scheduler ends at 1 / steps.
    at_start: share of rows that are at the start of their trajectory; the others are on the way.
    held: trajectories from noise that are not trained on, for the errors on the way.
    """

    seed: Natural = 0
    teacher: Call = Call()
    defaults: Call = Call(num_inference_steps=6, guidance_scale=1.0)
    pairs: PairsRecipe = PairsRecipe()
    at_start: Share = 0.45
    batch: Count = 48
    steps: Count = 2400
    warmup: Count = 50
    decay_steps: Natural = 900
    adam_lr: Positive = 5e-4
    muon_lr: NotNegative = 1e-3
    weight_decay: NotNegative = 0.0
    ema: Decay = 0.995
    zero_tokens: Counts = (1, 1, 1, 1, 16, 77, 256)
    held: Count = 192
    save_every: Count = 100
    look_every: Count = 200
    final_per_kind: Natural = 64


@dataclass(frozen=True)
class Pairs:
    """N trajectories: captions, noise levels (N,) float32 of their starts, starts and ends (N, C,
    H, W) float16."""

    captions: tuple[str, ...]
    levels: Tensor
    starts: Tensor
    ends: Tensor

    def part(self, rows: slice) -> Pairs:
        """Some of them."""
        return Pairs(*(column[rows] for column in vars(self).values()))


class Teacher:
    """The base model under guidance, at the noise levels of its own scheduler.

    Args:
        pipe: the stock pipeline.
        recipe: its call, and which grid steps are skipped.
    """

    def __init__(self, pipe: Any, recipe: Recipe) -> None:
        self.pipe, self.guidance, self.bf16 = pipe, recipe.teacher.guidance_scale, recipe.bf16
        pipe.scheduler.set_timesteps(recipe.teacher.num_inference_steps)
        self.sigmas: list[float] = pipe.scheduler.sigmas.tolist()
        self.steps = [k for k in range(len(self.sigmas)) if k not in recipe.pairs.skipped]
        if recipe.compile:
            for block in pipe.transformer.transformer_blocks:
                block.compile(dynamic=False)

    def velocity(self, x: Tensor, sigma: float, text: Tensor, pooled: Tensor) -> Tensor:
        """The guided velocity (N, ...) at x (N, ...); text (2N, L, D) and pooled (2N, D), those
        without text first."""
        times = torch.full((2 * len(x),), sigma * 1000)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            out = self.pipe.transformer(torch.cat([x, x]), text, pooled, times).sample.float()
        return guided(out, self.guidance)

    @torch.no_grad()
    def ends(self, x: Tensor, first: int, captions: list[str]) -> Tensor:
        """Where the sampler ends from states (N, ...) at grid step `first`."""
        text, pooled = encode_captions(self.pipe, [""] * len(x) + captions)
        for now, after in pairwise([k for k in self.steps if k >= first]):
            step = self.sigmas[after] - self.sigmas[now]
            x = x + step * self.velocity(x, self.sigmas[now], text, pooled)
        return x


def guided(out: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of outputs (2N, ...), those without text first; shape (N, ...)."""
    without, with_text = out.chunk(2)
    return without + scale * (with_text - without)


def make(pipe: Any, recipe: Recipe, folder: Path) -> Pairs:
    """The pairs of a recipe, those from noise first, in files of `folder`, each kept when it is
    done.

    ValueError for a file that another recipe made; how many pairs there are does not matter.
    """
    wanted = recipe.pairs
    pairs = {name: value for name, value in to_json(wanted).items() if not name.startswith("from_")}
    made_by = {"teacher": to_json(recipe.teacher), "pairs": pairs, "bf16": recipe.bf16}
    teacher = Teacher(pipe, recipe)
    shards = [
        (kind, number)
        for kind, count in (("noise", wanted.from_noise), ("renders", wanted.from_renders))
        for number in range(-(-count // wanted.shard))
    ]
    found = []
    for kind, number in tqdm(shards, desc="pairs", unit="file"):
        path = folder / f"{kind}-{number:04d}.pt"
        found.append(Pairs(**kept(path, made_by, _shard, teacher, wanted, kind, number)))
    return join(found)


def _shard(teacher: Teacher, recipe: PairsRecipe, kind: str, number: int) -> dict[str, Any]:
    """Fields of pairs: random, but always the same for the same recipe, kind and number."""
    dice = np.random.default_rng((recipe.seed, kind == "renders", number))
    noises = torch.Generator().manual_seed(int(dice.integers(2**62)))
    vae, size = teacher.pipe.vae, teacher.pipe.transformer.config.sample_size
    parts = []
    for first in range(0, recipe.shard, recipe.batch):
        specs = training_specs(min(recipe.batch, recipe.shard - first), dice)
        captions = list(map(caption, specs))
        noise = torch.randn(len(specs), vae.config.latent_channels, size, size, generator=noises)
        step = int(dice.choice(recipe.starts)) if kind == "renders" else 0
        level = teacher.sigmas[step]
        start = noise
        if kind == "renders":
            pictures = torch.from_numpy(render(specs, dice)) * 2 - 1
            with torch.no_grad():
                clean = scaled(vae, vae.encode(pictures).latent_dist.mean)
            start = (1 - level) * clean + level * noise
        end = teacher.ends(start, step, captions)
        parts.append(
            Pairs(tuple(captions), torch.full((len(specs),), level), start.half(), end.half())
        )
    return vars(join(parts))


def on_the_way(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Points (N, C, H, W) of the straight lines from starts to ends.

    share: (N,), of the noise level of the start that is left: 1 is the start, 0 the end.
    """
    return end + share.view(-1, 1, 1, 1) * (start - end)


def straight_velocity(start: Tensor, end: Tensor, level: Tensor) -> Tensor:
    """The velocity (N, C, H, W) along these lines, per noise level (N,); x - level * velocity is
    the end all along."""
    return (start - end) / level.view(-1, 1, 1, 1)


class TurboTrainer(Trainer[Any]):
    """Trains a copy of the base model's transformer on the teacher's pairs.

    Args:
        pipe: the base model.
        pairs: what to learn from.
        recipe: how.
    """

    def __init__(self, pipe: Any, pairs: Pairs, recipe: Recipe) -> None:
        self.pairs, self.recipe = pairs, recipe
        captions = list(dict.fromkeys(pairs.captions))
        rows = {text: i for i, text in enumerate(captions)}
        self.rows = torch.tensor([rows[text] for text in pairs.captions])
        parts = [
            encode_captions(pipe, captions[i : i + _TEXTS]) for i in range(0, len(captions), _TEXTS)
        ]
        self.text, self.pooled = (torch.cat(column).half() for column in zip(*parts, strict=True))
        net = copy.deepcopy(pipe.transformer).train()
        super().__init__(net, muon_and_adam(net.named_parameters(), recipe), **recipe.loop())
        self.attention = ZeroTokenAttention(net, recipe.batch, compiled=recipe.compile)

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        recipe, batch = self.recipe, self.recipe.batch
        dice = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        chosen = torch.randint(len(self.rows), (batch,), generator=dice)
        share = torch.rand(batch, generator=dice).clamp(min=0.02)
        share[torch.rand(batch, generator=dice) < recipe.at_start] = 1.0
        self.attention.draw_repeats(recipe.zero_tokens, dice)
        start, end = self.pairs.starts[chosen].float(), self.pairs.ends[chosen].float()
        level, text = self.pairs.levels[chosen], self.rows[chosen]
        x = on_the_way(start, end, share)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            out = self.net(
                x, self.text[text].float(), self.pooled[text].float(), level * share * 1000
            ).sample
        loss = (out.float() - straight_velocity(start, end, level)).pow(2).mean()
        return loss, {"loss": loss}


@torch.no_grad()
def errors(
    pipe: Any, net: Any, pairs: Pairs, calls: Sequence[int], *, bf16: bool
) -> dict[int, float]:
    """Mean squared error of the ends that n calls in equal steps reach from the starts of these
    pairs, for each n."""
    found = {}
    text, pooled = encode_captions(pipe, list(pairs.captions))
    for n in calls:
        x = pairs.starts.float()
        for k in range(n):
            level = pairs.levels * (1 - k / n)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                velocity = net(x, text, pooled, level * 1000).sample.float()
            x = x - (pairs.levels / n).view(-1, 1, 1, 1) * velocity
        found[n] = (x - pairs.ends.float()).pow(2).mean().item()
    return found


def assembled(pipe: Any, net: Any, recipe: Recipe) -> Any:
    """The base pipeline with this network, rounded to half precision, and a scheduler for few
    steps.

    Without `shift_terminal` the stock scheduler's last call is at a noise level of 0.001, where
    nothing is left to do.
    """
    pipe.transformer = net.half().float()
    # as new: one that was used saves its padding
    pipe.tokenizer = pipe.tokenizer_2 = build_tokenizer()
    pipe.tokenizer_3 = build_blank_tokenizer()
    terminal = 1 / recipe.defaults.num_inference_steps
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, shift_terminal=terminal
    )
    return pipe


def run(recipe: Recipe, out: Path, decay_now: int | None = None, install: bool = False) -> None:
    """Run what is left of the recipe: pairs that the folder already holds are read."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", to_json(recipe))
    pipe, began = load(), time.perf_counter()
    pairs = make(load(), recipe, out / "pairs")
    held = pairs.part(slice(recipe.held))
    trainer = TurboTrainer(pipe, pairs.part(slice(recipe.held, None)), recipe)

    def look() -> None:
        if trainer.step % recipe.look_every == 0 or trainer.step == trainer.steps:
            found = errors(pipe, trainer.ema, held, _CALLS, bf16=recipe.bf16)
            seconds = round(time.perf_counter() - began)
            line = {
                "step": trainer.step,
                "loss": round(trainer.figures["loss"], 5),
                "seconds": seconds,
            }
            with (out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({**line, "errors": found}) + "\n")

    trainer.run("turbo", out / "turbo.pt", recipe.save_every, decay_now=decay_now, look=look)
    over = turbo_path() if install else None
    turbo = assembled(pipe, trainer.ema, recipe)
    per_kind, grid = recipe.final_per_kind, out / "samples.png"
    said = (
        (lambda: accuracy_table(evaluate(turbo, recipe.defaults, per_kind, seed=SEED, grid=grid)))
        if per_kind
        else None
    )
    defaults = {**to_json(recipe.defaults), "reward": "scenes"}
    finish(turbo, out, defaults, said, over, coarse=("transformer",))
