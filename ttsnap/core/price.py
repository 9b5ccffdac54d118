"""What the kinds of cost take on an engine, and what scores, gradients and beginnings are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.cost import Cost, Rates
from ttsnap.core.start import AS_NOISE, Start


@dataclass(frozen=True)
class GuidedSteps:
    """Which steps a reward's gradient guides.

    A particle that moves on from such a step takes one gradient there, which its siblings share.
    Through the denoiser, the gradient is computed with the evaluation; an earlier evaluation
    without a graph is rerun and charged again.
    """

    steps: tuple[bool, ...]
    """(K,) whether each step is guided."""
    through: bool
    """Whether gradients go back through the denoiser (guided_steps.py)."""

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
    """What one unit of each kind of cost takes on an engine, and what scores and gradients are made
    of."""

    flops: Rates = field(default_factory=Rates)
    """In FLOPs."""
    seconds: Rates | None = None
    """In seconds; None until they have been measured."""
    passes_per_nfe: int = 1
    """Forward passes of one evaluation: 2 with classifier-free guidance."""
    estimates: Literal["decode", "preview", "nothing"] = "decode"
    """What scoring an unfinished estimate takes: a "decode", a "preview" by a cheap VAE, or
    "nothing". A finished image always takes a decode."""
    guided: GuidedSteps | None = None
    """Steps that follow a reward's gradient; None where none do."""
    depth: int = 0
    """Evaluations that the gradient of a finished image goes back through."""
    asked: int = 1
    """Rewards that a gradient asks. Each takes a reward call, and all of them share one decode."""
    passes_per_draft: int = 0
    """Forward passes of one call of the drafter; 0 where there is none."""
    tokens: int = 0
    """The most that scoring one image takes of language models behind an API."""
    more_calls: int = 0
    """Reward calls of a score beyond one of each reward: a reward of images may see several frames
    of a video."""
    features: int = 0
    """1 where features are taken of each image that is made to be scored; else 0."""
    bases: int = 0
    """Rewards that leave a finished image to a dearer base (`PerKind.base_calls`)."""
    start: Start = AS_NOISE
    """How particles come to step 0."""

    def __post_init__(self) -> None:
        counts = (
            ("passes_per_nfe", self.passes_per_nfe, 1),
            ("depth", self.depth, 0),
            ("asked", self.asked, 1),
            ("passes_per_draft", self.passes_per_draft, 0),
            ("tokens", self.tokens, 0),
            ("more_calls", self.more_calls, 0),
            ("features", self.features, 0),
            ("bases", self.bases, 0),
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
        """What a cap in NFE holds of a cost: evaluations, and draft calls by their passes. Whole
        numbers are of int."""
        whole, rest = divmod(cost.draft_calls * self.passes_per_draft, self.passes_per_nfe)
        return cost.nfe + whole + rest / self.passes_per_nfe if rest else cost.nfe + whole


PLAIN = Price()
