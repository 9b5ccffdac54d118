"""A synthetic recording with a known answer, and a student that is small enough to train in a
second.

Every trajectory ends in an image of one brightness b, that is the base reward. Its estimates show b
in the red channel only, shrunk towards the middle and under noise; green and blue are a louder
distraction. So the base reward of an estimate ranks badly, and a network that reads red ranks well.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ttsnap.core.grid import Grid
from ttsnap.files.writing import write_whole
from ttsnap.recordings.folder import IMAGES, open_recording, shard_path
from ttsnap.recordings.header import Header
from ttsnap.recordings.replay import Recording
from ttsnap.recordings.shards import Shard, ShardWriter

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)
SIZE = 6


class Brightness:
    """Mean pixel value."""

    name = "brightness"

    def __call__(self, images, prompts, level=None):
        return images.mean((1, 2, 3))


def estimate(prompt, seed, step, levels=LEVELS):
    """(3, SIZE, SIZE) in [0, 1]."""
    bright = np.random.default_rng((prompt, seed)).uniform(0.2, 0.8)
    rng = np.random.default_rng((prompt, seed, step, 1))
    level = levels[step]
    image = np.full((3, SIZE, SIZE), bright)
    image[1:] += level * rng.uniform(-0.4, 0.4, (2, 1, 1))
    image[0] = 0.5 + (1 - level / 2) * (image[0] - 0.5)
    return (image + level * rng.normal(0, 0.05, image.shape)).clip(0, 1)


def write_recording(
    folder,
    *,
    prompts=12,
    seeds=8,
    steps=(0, 1, 2, 3, 4),
    first_seed=5,
    levels=LEVELS,
    images=True,
    latents=False,
    offset=0,
    texts=None,
):
    """A finished recording of this world, in units of 4 prompts."""
    named = tuple(texts or (f"prompt {p + offset}" for p in range(prompts)))
    prompts = len(named)
    scores = np.full((prompts, seeds, len(levels), 1), np.nan)
    for p, s, k in product(range(prompts), range(seeds), steps):
        scores[p, s, k] = estimate(p + offset, s, k, levels).mean()
    scored = tuple(k in steps for k in range(len(levels)))
    recording = Recording(named, scores, Grid(tuple(levels)), ("brightness",), first_seed, scored)
    header = Header(**{**Header.of(recording).__dict__, "images": images, "block": (4, seeds)})
    with open_recording(folder, header) as there:
        (folder / IMAGES).mkdir(exist_ok=True)
        for unit in there.missing():

            def save(file, unit=unit):
                shard = ShardWriter(file)
                for p, s, k in product(unit.prompts, unit.seeds, steps):
                    image = estimate(p + offset, s, k, levels)
                    shard.add(
                        p,
                        first_seed + s,
                        k,
                        image,
                        {"latent": 2 * image[:2] - 1} if latents else None,
                    )
                shard.close()

            path = shard_path(folder, unit)
            if images:
                write_whole(path, save)
            there.add(unit, scores[unit.rows], Shard.of(path) if images else None)
        there.finish()
    return folder


class TinyStudent:
    """A convolution, the means of its channels and the level, two linear layers. Starts at random,
    not at the base."""

    def __init__(
        self,
        base,
        channels=3,
        seed=0,
        space="pixels",
        width=16,
        drop=0.05,
    ):
        self.name, self.base, self.space = "tiny", base, space
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            parts = {"first": nn.Conv2d(channels, width, 3), "second": nn.Linear(width + 1, width)}
            self.network: Any = nn.ModuleDict(
                {**parts, "drop": nn.Dropout(drop), "last": nn.Linear(width, 1)}
            )

    def trainable(self):
        return dict(self.network.named_parameters())

    def predict(self, x, prompts, level):
        assert len(prompts) == len(x) == len(level)
        self.network.train(torch.is_grad_enabled())
        hidden = torch.relu(self.network["first"](x - 0.5)).mean((2, 3))
        hidden = torch.cat([hidden, level.to(hidden)[:, None]], 1)
        hidden = self.network["drop"](torch.relu(self.network["second"](hidden)))
        return self.network["last"](hidden)[:, 0].float()  # type: ignore[no-any-return]

    def begin_stage(self, level): ...

    @torch.no_grad()
    def __call__(self, images, prompts, level):
        level = torch.as_tensor(level).expand(len(images))
        return torch.where(
            level > 0,
            self.predict(images, prompts, level),
            torch.as_tensor(self.base(images, prompts)),
        )

    def save_pretrained(self, folder, info):
        folder.mkdir(exist_ok=True)
        save_file(
            {name: p.detach().clone() for name, p in self.trainable().items()},
            folder / "adapter.safetensors",
        )

    @classmethod
    def load(cls, folder):
        made = cls(Brightness())
        made.network.load_state_dict(load_file(folder / "adapter.safetensors"))
        return made


class Broken(Brightness):
    """No number for one image, told by its pixels."""

    def __call__(self, images, prompts, level=None):
        scores = super().__call__(images, prompts, level)
        bad = np.round(estimate(2, 3, 4).mean() * 255) / 255
        return torch.where((scores - bad).abs() < 1e-4, torch.nan, scores)


class Constant(Brightness):
    """The same for every image."""

    def __call__(self, images, prompts, level=None):
        return torch.ones(len(images))


class Diverging(TinyStudent):
    """Its predictions overflow."""

    def predict(self, x, prompts, level):
        return super().predict(x, prompts, level) * 1e30


WORLD = str(Path(__file__).resolve())


def settings(recording, **changes):
    """A configuration of this world, as a dictionary."""
    student = {"kind": f"{WORLD}:TinyStudent"}
    training = {
        "steps_per_level": 40,
        "groups": 4,
        "group_size": 4,
        "lr": 0.01,
        "warmup": 5,
        "ema": 0.9,
    }
    more = {"validation": 0.3, "checkpoint_every": 60, "device": "cpu"}
    return {
        "recordings": [str(recording)],
        "reward": f"{WORLD}:Brightness",
        "student": student,
        **training,
        **more,
        **changes,
    }
