"""Verifier-threshold (arXiv 2512.08985): go on to the next step as soon as a candidate's score
passes a threshold.

The successor of RBF: thresholds are fixed per step, so that a lucky early score does not make all
later ones fail. A stream that passes the last threshold ends, which saves time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsnap.algorithms.rbf import RBF, RBFState, Stream
from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Task
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Share


@dataclass(frozen=True)
class VerifierThreshold(RBF):
    """Quota and rollover are as in RBF. A step whose quota is used up takes its best candidate."""

    thresholds: tuple[float, ...] | None = None
    """Scores to reach at steps 1 to K - 1, where the scale of the reward is known; None for
    quantiles of the initial noises' scores [the paper's idea; its values are not known to us]."""
    quantiles: tuple[Share, Share] = (0.5, 1.0)
    """Rising linearly from the first number at step 1 to the second at K - 1; 1 is the score of the
    best noise [ours]."""
    exhaustive: ClassVar[bool] = False

    def init(self, task: Task) -> RBFState:
        if self.thresholds is not None and len(self.thresholds) != task.grid.steps - 1:
            raise ValueError(
                f"{len(self.thresholds)} thresholds for {task.grid.steps - 1} steps before the"
                " image"
            )
        return super().init(task)

    def adopt(self, state: RBFState, uids: IntArray, particles: Particles) -> RBFState:
        noises = particles.value(np.flatnonzero(particles.scored == particles.step[uids].min()))
        noises = noises[np.isfinite(noises)]
        at = np.linspace(*self.quantiles, state.task.grid.steps - 1)
        relative = np.quantile(noises, at).tolist() if len(noises) else [-np.inf] * len(at)
        return (
            super().adopt(state, uids, particles)._replace(bars=self.thresholds or tuple(relative))
        )

    def _accepts(self, score: float, step: int, stream: Stream, state: RBFState) -> bool:
        return bool(np.isfinite(score)) and score >= state.bars[:step][-1]
