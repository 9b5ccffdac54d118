"""What counts as best: one value, which a search carries from its door down to its particles.

Four parts decide. A *utility* makes one number of several rewards. `keep` images come back. A
*diversity* above 0 asks for images that are unlike each other. A *gate* refuses finished images
that miss a requirement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray
from ttsnap.core.diversity import diverse
from ttsnap.core.requirement import Gate
from ttsnap.core.utility import Utility, mean, rank_sum

AMONG = 8
"""Of how many times as many good images those are chosen that differ."""


@dataclass(frozen=True)
class Selection:
    """Which images of a search are the best, and how many of them come back.

    `Selection(keep=4, diversity=1.0)` returns four images that are good and unlike each other.
    ValueError for a `keep` below 1, and for a diversity that is negative or not finite.
    """

    utility: Utility = mean
    """Makes one number of an image's scores."""
    keep: int = 1
    """How many finished images come back, best first."""
    diversity: float = 0.0
    """How much it counts that kept images are unlike each other, against their values
    (core/diversity.py)."""
    gate: Gate | None = None
    """What finished images must meet to be returned."""
    enough: Gate | None = None
    """What `keep` finished images must meet for the search to end before its budget does."""

    def __post_init__(self) -> None:
        if self.keep < 1 or self.keep != int(self.keep):
            raise ValueError(
                f"keep must be {'at least 1' if self.keep < 1 else 'a whole number'}, got"
                f" {self.keep}"
            )
        if not 0 <= self.diversity < math.inf:
            raise ValueError(f"diversity must be a finite number from 0 on, got {self.diversity}")

    def named(self, rewards: Sequence[str]) -> Selection:
        """The same, its requirements in words of the rewards' names: what a user gave may be an
        address or a file."""
        gate, enough = (each and each.named(rewards) for each in (self.gate, self.enough))
        return replace(self, gate=gate, enough=enough)

    @property
    def gated(self) -> bool:
        """Whether finished images may be refused, so that a search may return none."""
        return self.gate is not None

    @property
    def words(self) -> list[str] | None:
        """What is required, as users write it; None where nothing is."""
        return None if self.gate is None else self.gate.words

    @property
    def differing(self) -> bool:
        """Whether the images that come back are to be unlike each other."""
        return self.diversity > 0 and self.keep > 1

    @property
    def candidates(self) -> int:
        """Of how many of the best images those to return are chosen. All others can be let go at
        any time."""
        return AMONG * self.keep if self.differing else self.keep

    def values(self, scores: FloatArray) -> FloatArray:
        """Scores (..., N, R) -> (..., N) float64, higher is better. Rewards that only admit do not
        count."""
        return np.asarray(
            self.utility(scores if self.gate is None else scores[..., : self.gate.counted]), float
        )

    def admits(self, scores: FloatArray) -> BoolArray:
        """Scores (..., R) of finished images -> (...) whether they may be returned."""
        return np.ones(scores.shape[:-1], bool) if self.gate is None else self.gate.admits(scores)

    def ends(self, scores: FloatArray) -> bool:
        """Whether these finished images (N, R) are all that the search is for."""
        if self.enough is None:
            return False
        met = self.enough.admits(scores) & self.admits(scores)
        return int(np.count_nonzero(met)) >= self.keep

    def refusals(self, scores: FloatArray) -> dict[str, int]:
        """How many of these finished images (N, R) fail each requirement, by its words."""
        return {} if self.gate is None else self.gate.refusals(scores)

    def spread(self, values: FloatArray, features: FloatArray, k: int) -> IntArray:
        """Places (n,) of n images, first the k to go on with: the best, or a group of images that
        differ.

        values (n,): the best first, -inf where there is none. features (n, D), by which images are
        compared. Both parts of the result are the best first.
        """
        places = np.arange(len(values))
        if (
            not self.differing
            or not 1 < k < len(values)
            or not np.isfinite(features[np.isfinite(values)]).all()
        ):
            return places
        group = np.sort(diverse(values, features, k, self.diversity))
        return np.concatenate([group, np.delete(places, group)])

    def check_scores_each(self, algorithm: str) -> None:
        """ValueError for an algorithm that compares images which were valued apart, where the
        utility only ranks images among each other."""
        if self.utility is rank_sum:
            raise ValueError(
                f"rank_sum only ranks images among each other; {algorithm} needs a score of each:"
                " use mean"
            )


BEST = Selection()
"""One image, by the mean of its scores."""
