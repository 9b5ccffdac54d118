"""What one unit of each kind of cost takes on an engine. What the rows of a move cost is in pricing.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.cost import Cost


@dataclass(frozen=True)
class Rates:
    """A price per unit of Cost, in FLOPs or in seconds. `call` is a fixed overhead per denoiser batch.

    `gradient` and `backward` are backward passes alone: their forward halves are among the decodes, reward calls and
    evaluations of a Cost, so that nothing is paid twice.
    """

    nfe: float = 0.0
    decode: float = 0.0
    reward_call: float = 0.0
    call: float = 0.0
    preview: float = 0.0
    gradient: float = 0.0
    backward: float = 0.0

    def of(self, cost: Cost) -> float:
        decoding = self.decode * cost.decodes + self.preview * cost.previews
        return self.nfe * cost.nfe + decoding + self.reward_call * cost.reward_calls + self.pulling(cost)

    def pulling(self, cost: Cost) -> float:
        """What the backward passes of a cost take."""
        return self.gradient * cost.gradients + self.backward * cost.backwards

    def pixels(self, estimates: str) -> float:
        """What making pixels of one unfinished estimate takes; `estimates` as in Price."""
        return {"decode": self.decode, "preview": self.preview, "nothing": 0.0}[estimates]


@dataclass(frozen=True)
class Guided:
    """Which steps (K,) a reward's gradient guides, and whether it goes back `through` the denoiser (guided_steps.py).

    A particle that moves on from such a step takes one gradient there, which its siblings share. Through the denoiser,
    the gradient is computed with the evaluation; an earlier evaluation without a graph is rerun and charged again.
    """

    steps: tuple[bool, ...]
    through: bool

    @cached_property
    def at(self) -> BoolArray:
        """(K+1,) steps."""
        return np.array([*self.steps, False])

    @cached_property
    def before(self) -> IntArray:
        """(K+1,) gradients that it takes to get from noise to each step."""
        return np.concatenate([[0], np.cumsum(self.steps)])


@dataclass(frozen=True)
class Price:
    """What one unit costs on this engine. `seconds` is None until it has been measured.

    estimates: what scoring an unfinished estimate takes: a "decode", a "preview" by a cheap VAE, or "nothing". A
    finished image always takes a decode. depth: evaluations that the gradient of a finished image goes back through.
    asked: rewards that a gradient asks; each is a reward call, and the decode that they share is one, too.
    """

    flops: Rates = Rates()
    seconds: Rates | None = None
    passes_per_nfe: int = 1
    estimates: str = "decode"
    guided: Guided | None = None
    depth: int = 0
    asked: int = 1

    def __post_init__(self) -> None:
        for name, least in (("passes_per_nfe", 1), ("depth", 0), ("asked", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a price must be at least {least}, got {getattr(self, name)}")

    def of_gradients(self, gradients: int, backwards: int, nfe: int = 0) -> Cost:
        """The cost of so many gradients, which go back through `backwards` evaluations, of which `nfe` are new."""
        return Cost(nfe, gradients, gradients * self.asked, gradients=gradients, backwards=backwards)


PLAIN = Price()
