"""Ways by which particles come to step 0, other than as noise: each is a `Starter`, and nothing else
knows how it goes.

One of your own is a file with a `Starter`, which a denoiser has as its `starter`. What it costs is
a value (core/start.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.start import Start
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Kernel, KernelState, Prediction


class Begun(NamedTuple):
    """N particles at step 0."""

    latents: Tensor
    """(N, ...)."""
    states: Sequence[KernelState] | None = None
    """What the kernel keeps for each; None where it begins with them."""
    guesses: Tensor | None = None
    """(N, ...) finished latents from which they began, if they did: their drafts."""


class Starter(Protocol):
    """How particles come to step 0."""

    @property
    def start(self) -> Start:
        """What that takes."""

    @property
    def guess_level(self) -> float:
        """The noise level, in (0, 1], that the guesses are scored at; 0 where it makes none."""

    def begin(
        self,
        noise: Tensor,
        cond: Tensor,
        keys: Sequence[rng.Key],
        generators: Sequence[Generator],
    ) -> Begun:
        """Initial noise (N, ...) of prompts (N,) -> the particles at step 0.

        They are `start.size` seeds in their order, or one particle alone; any number of seeds where
        each begins by itself. keys: (seed, branch) of each; generators: by which its noise was
        drawn.
        """

    def flops(self) -> Mapping[str, float]:
        """FLOPs of a unit of each kind of cost that nothing but this takes."""


@dataclass(frozen=True)
class FromDrafts:
    """Each particle begins from its draft, put back to a noise level with its own noise: x = alpha
    guess + sigma noise.

    That is image-to-image, with the draft for the image.
    """

    guess: Callable[[Tensor, Tensor], Tensor]
    """Initial noise (N, ...) of prompts (N,) -> their drafts (N, ...)."""
    noised: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Drafts (N, ...), that noise and the prompts -> latents of step 0."""
    calls: int
    """Of the drafter, for each draft."""
    guess_level: float
    """That the last call is told."""
    image_nfe: int
    """Evaluations of an image from noise."""

    @property
    def start(self) -> Start:
        return Start(cost=Cost(draft_calls=self.calls), image_nfe=self.image_nfe)

    @torch.no_grad()
    def begin(
        self,
        noise: Tensor,
        cond: Tensor,
        keys: Sequence[rng.Key],
        generators: Sequence[Generator],
    ) -> Begun:
        guesses = self.guess(noise, cond)
        return Begun(self.noised(guesses, noise, cond), guesses=guesses)

    def flops(self) -> Mapping[str, float]:
        return {}


@dataclass(frozen=True)
class Coupled:
    """Groups of seeds take the first steps of a call together."""

    predict: Callable[[Tensor, Tensor, Tensor, rng.Key | None], Prediction]
    """As of Denoiser, on the whole call's grid, of rows that are coupled; by what key, or None for
    a particle alone."""
    kernel: Kernel
    """Of the whole call's steps."""
    size: int
    """Seeds of a group."""
    steps: int
    """That they take together."""
    nfe: int
    """Evaluations of each."""
    image_nfe: int
    """Evaluations of an image from noise."""
    flops_beside: Callable[[], float]
    """FLOPs of coupling a seed with the others, beside an evaluation."""
    guess_level = 0.0

    @property
    def start(self) -> Start:
        whole = self.size * self.nfe
        return Start(self.size, Cost(whole, coupled=whole), self.steps, self.image_nfe)

    @torch.no_grad()
    def begin(
        self,
        noise: Tensor,
        cond: Tensor,
        keys: Sequence[rng.Key],
        generators: Sequence[Generator],
    ) -> Begun:
        x = noise
        states: Sequence[KernelState] = [
            self.kernel.init(*each) for each in zip(noise, keys, generators, strict=True)
        ]
        for position in range(self.nfe):
            at = torch.full((len(x),), position)
            prediction = self.predict(x, at, cond, (keys[0][0], position) if len(x) > 1 else None)
            sources = [(*key, position) for key in keys]
            x, states = self.kernel.step(x, prediction, at, sources, states)
        return Begun(x, states)

    def flops(self) -> Mapping[str, float]:
        return {"coupled": self.flops_beside()}
