"""Whether a reward has scored anything yet: one that fails from the start ends a search, before all is spent on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttsnap.core.arrays import BoolArray, FloatArray
from ttsnap.rewards.registry import RewardError, place_of, said
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.rewards.scoring import SILENT

NOT_FINITE = "the latent or its image is nan or inf; in half precision, try bfloat16 or a VAE in float32"


class FirstScores:
    """Of some rewards. What judges estimates and what judges finished images begin separately where they are not the
    same code. Batches of one image are taken together until there are two, unless the reward raises an exception."""

    def __init__(self, rewards: Sequence[RewardModel]) -> None:
        self._split = {r.name: r.scores_estimates_apart for r in rewards}
        # By reward, and whether of finished images: those that failed so far where none was scored yet, -1 afterwards.
        self._failed: dict[tuple[str, bool], int] = {}

    def check(self, name: str, scores: FloatArray, last: BoolArray, broken: BoolArray, error: Exception | None) -> None:
        """RewardError where this reward has failed on all that it was asked about so far: scores (N,) of a batch,
        of which `last` (N,) are finished images, and `broken` (N,) nan or inf before any reward saw them."""
        last = last & self._split[name]
        for kind in np.unique(last).tolist():
            of_kind, before = last == kind, self._failed.get((name, kind), 0)
            if before < 0 or not np.isnan(scores[of_kind]).all():
                self._failed[name, kind] = -1
                continue
            n = before + int(of_kind.sum())
            self._failed[name, kind] = n
            if error is not None or n >= SILENT:
                why = NOT_FINITE if broken[of_kind].all() else f"{name} failed; it gave nan or inf"
                why = f"{said(name, error)}{place_of(error)}" if error is not None else why
                raise RewardError(f"none of the first {n} images could be scored: {why}") from error


def explained(scores: FloatArray, causes: dict[str, str | None]) -> str | None:
    """Why some of an image's scores (R,) are nan, None where none is. causes: what was said of each reward, by name."""
    if not np.isnan(scores).any():
        return None
    known = [cause for cause in causes.values() if cause]
    bad = [name for name, s in zip(causes, scores, strict=True) if np.isnan(s)]
    return "; ".join(known) or f"{', '.join(bad)} returned nan or inf"
