"""A Gaussian mixture that counts what it is called for, and a reward that fails on purpose."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from ttsnap.sampling.mixture import MixtureDenoiser


class Counted(MixtureDenoiser):
    """Counts what runs, row by row, independently of the engine and the ledger. Tests may set what
    it says it has."""

    frames: Any = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = self.decodes = self.batches = 0

    def predict(self, x, step, cond):
        self.calls += len(x)
        self.batches += 1
        return super().predict(x, step, cond)

    def decode(self, x0):
        self.decodes += len(x0)
        images = super().decode(x0)
        if self.frames is None:
            return images
        # each frame lighter
        return images[:, None] * torch.linspace(0.5, 1, self.frames)[:, None, None, None]


class Brightness:
    """Mean pixel value; fails (raises or gives nan) on a share of its calls, decided by the pixels
    alone.

    `spared`: the first call never fails, so that the failures do not end the search at once.
    `times`: images of one score, where they are frames of a video.
    """

    def __init__(
        self,
        name="brightness",
        nan=0,
        broken=0,
        spared=False,
        times=1,
    ):
        self.name, self.nan, self.broken, self.spared, self.times, self.images = (
            name,
            nan,
            broken,
            spared,
            times,
            0,
        )
        self.hopeless: bool | None = None
        """Whether it failed on all of the first images (an exception, or eight nan); None before
        that is told."""

    def __call__(self, images, prompts, level):
        self.images += len(images)
        scores = images.double().flatten(1).mean(1)
        if self.spared and self.images == len(images):
            return scores
        draw = torch.tensor([zlib.crc32(i.numpy().tobytes()) / 2**32 for i in images.cpu()])
        down = bool((draw < self.broken).any())
        scores[draw < self.nan + self.broken] = float("nan")
        if self.hopeless is None:
            scored = not down and not bool(scores.reshape(-1, self.times).isnan().any(1).all())
            self.hopeless = (
                False if scored else True if down or self.images >= 8 * self.times else None
            )
        if down:
            raise RuntimeError("the scorer is down")
        return scores

    def differentiable(self, images, prompts, level):
        return images.double().mean((1, 2, 3))
