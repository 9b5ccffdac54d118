"""What one unit of each kind of cost takes on an engine. What the rows of a move cost is in pricing.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.cost import PHASES, PLACES, Cost, PerKind, Phase


@dataclass(frozen=True)
class Rates(PerKind[float], unset=0.0):
    """A price per unit of each kind of cost, in FLOPs or in seconds. `call` is a fixed overhead per denoiser batch.

    Those of `gradients` and `backwards` are for backward passes alone: their forward halves are among the decodes,
    reward calls and evaluations of a Cost, so that nothing is paid twice.
    """

    call: float = 0.0

    def of(self, cost: Cost) -> float:
        """What all of a cost takes, but for the overhead of batches: the dot product, added up phase by phase."""
        rates, amounts, taken = self.amounts(), cost.amounts(), 0.0
        for places in PLACES.values():
            part = 0.0
            for i in places:
                part += rates[i] * amounts[i]
            taken += part
        return taken

    def by_phase(self, cost: Cost) -> dict[Phase, float]:
        """What each phase of a cost takes; they add up to `of` it."""
        rates, amounts, taken = self.amounts(), cost.amounts(), dict.fromkeys(PHASES, 0.0)
        for phase, places in PLACES.items():
            for i in places:
                taken[phase] += rates[i] * amounts[i]
        return taken

    def pixels(self, estimates: str) -> float:
        """What making pixels of one unfinished estimate takes; `estimates` as in Price."""
        return {"decode": self.decodes, "preview": self.previews, "nothing": 0.0}[estimates]


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
    passes_per_draft: forward passes of one call of the drafter; 0 where there is none. tokens: the most that scoring
    one image takes of language models behind an API. more_calls: reward calls that a score takes beyond one of each
    reward, as rewards of images do that see several frames of a video.
    """

    flops: Rates = Rates()
    seconds: Rates | None = None
    passes_per_nfe: int = 1
    estimates: str = "decode"
    guided: Guided | None = None
    depth: int = 0
    asked: int = 1
    passes_per_draft: int = 0
    tokens: int = 0
    more_calls: int = 0

    def __post_init__(self) -> None:
        counts = (
            ("passes_per_nfe", self.passes_per_nfe, 1),
            ("depth", self.depth, 0),
            ("asked", self.asked, 1),
            ("passes_per_draft", self.passes_per_draft, 0),
            ("tokens", self.tokens, 0),
            ("more_calls", self.more_calls, 0),
        )
        for name, count, least in counts:
            if count < least:
                raise ValueError(f"{name} of a price must be at least {least}, got {count}")

    def calls(self, rewards: int) -> int:
        """Reward calls that one score by so many rewards takes."""
        return rewards + self.more_calls

    @property
    def nfe_per_draft(self) -> float:
        """What one call of the drafter is in evaluations of the denoiser, by forward passes."""
        return self.passes_per_draft / self.passes_per_nfe

    def evaluations(self, cost: Cost) -> float:
        """What a cap in NFE holds of a cost: evaluations, and draft calls by their passes."""
        return cost.nfe + cost.draft_calls * self.nfe_per_draft if cost.draft_calls else cost.nfe

    def of_gradients(self, gradients: int, backwards: int, nfe: int = 0) -> Cost:
        """The cost of so many gradients, which go back through `backwards` evaluations, of which `nfe` are new."""
        return Cost(nfe, gradients, gradients * self.asked, gradients=gradients, backwards=backwards)


PLAIN = Price()
