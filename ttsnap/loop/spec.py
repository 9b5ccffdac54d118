"""What a search is asked for, whatever engine runs it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ttsnap.core import utility as utilities
from ttsnap.core.particles import Utility
from ttsnap.core.protocols import Algorithm
from ttsnap.loop.budget import Budget


@dataclass(frozen=True)
class SearchSpec:
    """How each of some prompts is searched.

    algorithm: decides what to denoise. budget: caps per prompt; with `shared`, the prompts draw on one pot of that many
    times their number. utility: makes one number of an image's scores. seed: candidate i of a prompt starts from the
    noise of torch seed `seed + i`, in 0..2^64 - 1, where 0 comes after the last. keep: how many finished images come
    back. ValueError for a seed or keep out of range.
    """

    algorithm: Algorithm
    budget: Budget = field(default_factory=Budget)
    utility: Utility = utilities.mean
    seed: int = 0
    keep: int = 1
    shared: bool = False

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2^64 - 1, as torch has them, got {self.seed}")
