"""Orders of the recorded seeds: each of thousands of searches sees them in one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.looks import ESTIMATE, Estimator
from ttsnap.recordings.replay import Recording
from ttsnap.simulation.lockstep import Lookup

FAILED = "the recording holds failed (nan) scores; simulate with prompts and seeds that have none"
"""The error where scores are missing."""


@dataclass(frozen=True)
class Orders:
    """Orders of the S recorded seeds for many searches: each sees them by rising `draws` (searches,
    S)."""

    draws: FloatArray

    def __len__(self) -> int:
        """Number of searches."""
        return len(self.draws)

    @classmethod
    def drawn(cls, recording: Recording, repeats: int, rng: np.random.Generator) -> Orders:
        """Random orders, for `repeats` searches of every prompt. Seeds that begin together stay
        together."""
        draws = rng.random((repeats * len(recording.prompts), recording.seeds), dtype=np.float32)
        if (size := recording.price.start.size) > 1:
            of = np.arange(recording.seeds) // size
            place = rng.random((len(draws), of[-1] + 1)).argsort(1)
            if recording.seeds % size:  # what is not whole comes last
                place[:, -1] = of[-1] + 1
            draws += place[:, of]
        return cls(draws)

    @cached_property
    def seeds(self) -> IntArray:
        """(searches, S)."""
        return self.draws.argsort(1)

    def play(self, recording: Recording, n: int) -> Lookup:
        """Scores of the first n seeds of every search; search i is of prompt i modulo the number of
        prompts.

        ValueError where the recording holds failed scores."""
        seeds = self.seeds[:, :n] if n > 1 else self.draws.argmin(1)[:, None]
        known = np.asarray(recording.scored)
        prompt = np.arange(len(seeds)) % len(recording.prompts)
        flat = recording.scores.reshape(-1, len(recording.reward_names))
        # of each candidate among all that were recorded
        place = seeds + recording.seeds * prompt[:, None]

        def lookup(
            rows: IntArray, candidates: IntArray, steps: IntArray, look: Estimator
        ) -> FloatArray:
            of = place.reshape(-1).take(candidates + place.shape[1] * rows[:, None])
            if look != ESTIMATE:
                return _seen(recording, of, steps, look)
            if not known[steps].all():
                raise ValueError(
                    f"steps {sorted(set(steps.ravel().tolist()))} asked for; recorded are "
                    f"{np.flatnonzero(known).tolist()}"
                )
            scores: FloatArray = flat.take(len(known) * of + steps, axis=0)
            return scores

        if recording.failed:
            raise ValueError(FAILED)
        return lookup


def _seen(recording: Recording, of: IntArray, steps: IntArray, look: Estimator) -> FloatArray:
    """Scores (..., R) of candidates `of` (...), counted over all prompts, at `steps` (...) by this
    estimator."""
    scores = np.empty((*of.shape, len(recording.reward_names)))
    for step in set(steps.ravel().tolist()):
        at = steps == step
        scores[at] = recording.seen(look.at(step).name, step).reshape(-1, scores.shape[-1])[of[at]]
    return scores


def draw_orders(
    recording: Recording, budgets: Sequence[object], repeats: int, seed: int
) -> list[Orders]:
    """Random orders for `repeats` searches of every prompt, others at each of these budgets."""
    rng = np.random.default_rng(seed)
    return [Orders.drawn(recording, repeats, rng) for _ in budgets]
