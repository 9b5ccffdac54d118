"""Pairs to learn from: a noisy latent, and where the teacher's guided sampler ends from it.

Half of them start from pure noise, as the sampler does. The others start from rendered pictures under fresh noise, so
that the few-step model also knows states that a stochastic sampler puts it in, off its own trajectories.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from ttsnap.files.reading import parse_object, read_tensors
from ttsnap.files.settings import Json, check, to_json
from ttsnap.files.writing import write_whole
from ttsnap.scenes.grammar import caption
from ttsnap.scenes.model import tokenize
from ttsnap.scenes.render import render
from ttsnap.scenes.training.base.data import training_specs
from ttsnap.scenes.training.parts import Pipeline
from ttsnap.scenes.training.turbo.recipe import PairsRecipe, TurboRecipe


@dataclass(frozen=True)
class Pairs:
    """N trajectories: captions, noise levels (N,) float32 of their starts, starts and ends (N, C, H, W) float16."""

    captions: tuple[str, ...]
    levels: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def part(self, first: int, last: int) -> Pairs:
        """Those from `first` on, up to `last`, which is left out."""
        at = slice(first, last)
        return Pairs(self.captions[at], self.levels[at], self.starts[at], self.ends[at])


def joined(parts: list[Pairs]) -> Pairs:
    """All pairs of several parts, in order."""
    return Pairs(
        tuple(text for part in parts for text in part.captions),
        torch.cat([part.levels for part in parts]),
        torch.cat([part.starts for part in parts]),
        torch.cat([part.ends for part in parts]),
    )


class Teacher:
    """The base model under guidance, at the noise levels of its own scheduler.

    Args:
        pipe: the stock pipeline.
        recipe: its call, and which grid steps are skipped.
    """

    def __init__(self, pipe: Pipeline, recipe: TurboRecipe) -> None:
        self.pipe, self.guidance = pipe, recipe.teacher.guidance_scale
        self.bf16 = recipe.bf16
        pipe.scheduler.set_timesteps(recipe.teacher.num_inference_steps)
        self.sigmas: list[float] = pipe.scheduler.sigmas.tolist()
        self.steps = [k for k in range(len(self.sigmas)) if k not in recipe.pairs.skipped]
        if recipe.compile:
            for block in pipe.transformer.transformer_blocks:
                block.compile(dynamic=False)

    def velocity(self, x: torch.Tensor, sigma: float, text: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """The guided velocity (N, ...) at x (N, ...); text (2N, L, D) and pooled (2N, D), those without text first."""
        times = torch.full((2 * len(x),), sigma * 1000)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            out = self.pipe.transformer(torch.cat([x, x]), text, pooled, times).sample.float()
        return guided(out, self.guidance)

    @torch.no_grad()
    def ends(self, x: torch.Tensor, first: int, captions: list[str]) -> torch.Tensor:
        """Where the sampler ends from states (N, ...) at grid step `first`."""
        text, pooled = encoded(self.pipe, [""] * len(x) + captions)
        for now, after in pairwise([k for k in self.steps if k >= first]):
            step = self.sigmas[after] - self.sigmas[now]
            x = x + step * self.velocity(x, self.sigmas[now], text, pooled)
        return x


def guided(out: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance of outputs (2N, ...), those without text first; shape (N, ...)."""
    without, with_text = out.chunk(2)
    return without + scale * (with_text - without)


@torch.no_grad()
def encoded(pipe: Pipeline, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Text tokens with one zero token (N, L, D) and the pooled text (N, D), as the stock call makes them."""
    ids = tokenize(pipe.tokenizer, captions)
    outs = [encoder(ids, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    tokens = torch.cat([out.hidden_states[-2] for out in outs], -1)
    return torch.nn.functional.pad(tokens, (0, 0, 0, 1)), torch.cat([out.text_embeds for out in outs], -1)


def make(pipe: Pipeline, recipe: TurboRecipe, folder: Path) -> Pairs:
    """The pairs of a recipe, in files of `folder`; those that are there are read. A file appears whole or not at all.

    Those from noise come first. ValueError for a file that is damaged or was made by another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = recipe.pairs
    kinds = [("noise", wanted.from_noise), ("renders", wanted.from_renders)]
    paths = [
        (kind, number, folder / f"{kind}-{number:04d}.safetensors")
        for kind, count in kinds
        for number in range(-(-count // wanted.shard))
    ]
    missing = [path for _, _, path in paths if not path.exists()]
    teacher = Teacher(pipe, recipe) if missing else None
    found = []
    for kind, number, path in tqdm(paths, desc="pairs", unit="file"):
        if teacher is not None and not path.exists():
            write(path, _shard(teacher, wanted, kind, number), recipe)
        found.append(read(path, recipe))
    return joined(found)


def _shard(teacher: Teacher, recipe: PairsRecipe, kind: str, number: int) -> Pairs:
    """Random, but always the same for the same recipe, kind and number."""
    dice = np.random.default_rng((recipe.seed, kind == "renders", number))
    noises = torch.Generator().manual_seed(int(dice.integers(2**62)))
    parts = []
    for first in range(0, recipe.shard, recipe.batch):
        specs = training_specs(min(recipe.batch, recipe.shard - first), dice)
        captions = list(map(caption, specs))
        vae = teacher.pipe.vae
        size = teacher.pipe.transformer.config.sample_size
        noise = torch.randn(len(specs), vae.config.latent_channels, size, size, generator=noises)
        step = int(dice.choice(recipe.starts)) if kind == "renders" else 0
        level = teacher.sigmas[step]
        start = noise
        if kind == "renders":
            pictures = torch.from_numpy(render(specs, dice)) * 2 - 1
            with torch.no_grad():
                raw = vae.encode(pictures).latent_dist.mean
            clean = (raw - vae.config.shift_factor) * vae.config.scaling_factor
            start = (1 - level) * clean + level * noise
        end = teacher.ends(start, step, captions)
        parts.append(Pairs(tuple(captions), torch.full((len(specs),), level), start.half(), end.half()))
    return joined(parts)


def settings_of(recipe: TurboRecipe) -> Json:
    """What a file of pairs depends on: not how many there are."""
    pairs = {name: value for name, value in to_json(recipe.pairs).items() if not name.startswith("from_")}
    return {"teacher": to_json(recipe.teacher), "pairs": pairs, "bf16": recipe.bf16}


def write(path: Path, pairs: Pairs, recipe: TurboRecipe) -> None:
    """Write a file of pairs, whole or not at all."""
    about = json.dumps({"captions": list(pairs.captions), "recipe": settings_of(recipe)})
    tensors = {"levels": pairs.levels, "starts": pairs.starts.contiguous(), "ends": pairs.ends.contiguous()}
    data = save(tensors, {"pairs": about})
    write_whole(path, lambda file: file.write(data))


def read(path: Path, recipe: TurboRecipe) -> Pairs:
    """Pairs of a file. ValueError where it is damaged or was made by another recipe."""
    tensors, metadata = read_tensors(path, "file of pairs")
    about = parse_object(metadata.get("pairs", ""), path)
    if about.get("recipe") != settings_of(recipe):
        raise ValueError(f"{path} was made by another recipe: use that one, or another folder for this one")
    captions = check("captions", about.get("captions"), tuple[str, ...])
    levels, starts, ends = (torch.from_numpy(np.array(tensors[name])) for name in ("levels", "starts", "ends"))
    if not len(captions) == len(levels) == len(starts) == len(ends):
        raise ValueError(f"{path} is damaged: it holds {len(captions)} captions, but {len(ends)} ends")
    return Pairs(captions, levels, starts, ends)
