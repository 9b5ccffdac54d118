"""The prompts that trajectories are made of: captions of the embedded world, or the lines of a
file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ttsnap.files.settings import Json
from ttsnap.scenes import HARD_KINDS, KINDS, caption, is_held_out, sample_spec

EASY_EVERY = 4
"""One caption in so many is of any kind, the others are of hard kinds."""


class Prompts(Protocol):
    """A source of prompts."""

    def draw(self, shard: int, count: int) -> list[str]:
        """The prompts of a shard's trajectories, always the same."""

    @property
    def identity(self) -> Json:
        """What distinguishes these prompts from others, JSON-ready."""


@dataclass(frozen=True)
class SceneCaptions:
    """Captions of the embedded world, three quarters of them of hard kinds, none of them held out
    for evaluation."""

    seed: int

    def draw(self, shard: int, count: int) -> list[str]:
        rng = np.random.default_rng((self.seed, shard))
        drawn: list[str] = []
        while len(drawn) < count:
            kinds = KINDS if len(drawn) % EASY_EVERY == EASY_EVERY - 1 else HARD_KINDS
            text = caption(sample_spec(rng, kinds[int(rng.integers(len(kinds)))]))
            if not is_held_out(text):
                drawn.append(text)
        return drawn

    @property
    def identity(self) -> Json:
        return {"scenes": self.seed}


@dataclass(frozen=True)
class Listed:
    """The prompts of a list in turn, again and again, with other seeds each time."""

    texts: Sequence[str]

    def draw(self, shard: int, count: int) -> list[str]:
        return [self.texts[(shard * count + i) % len(self.texts)] for i in range(count)]

    @property
    def identity(self) -> Json:
        return {
            "sha256": hashlib.sha256(json.dumps(list(self.texts)).encode()).hexdigest(),
            "count": len(self.texts),
        }
