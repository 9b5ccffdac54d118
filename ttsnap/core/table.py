"""The growing table of a search's particles, behind the read-only view that algorithms get."""

from __future__ import annotations

import numpy as np

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray
from ttsnap.core.moves import ASCEND, CONTINUE
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.core.selection import Selection


class ParticleTable:
    """Arrays with spare room; `view` shows the part in use without copying it."""

    def __init__(self, steps: int, rewards: int, selection: Selection) -> None:
        self._selection = selection
        self._n = 0
        self._owing = False
        self._seed = np.empty(0, np.uint64)
        self._ints = np.empty((3, 0), int)  # parent, step, scored
        self._flags = np.empty((3, 0), bool)  # cached, alive, has_gradient
        self._ratio = np.empty(0)
        self._scores = np.empty((0, steps + 1, rewards))
        self._features: FloatArray | None = None  # made when the first ones tell how many there are
        self.view = self._seen(self._ints, self._flags)
        """What is in use, read-only, as it is now and will be until particles are added."""

    def _seen(self, ints: IntArray, flags: BoolArray) -> Particles:
        n = self._n
        ints = ints[:, :n]
        flags = flags[:, :n]
        seed = self._seed[:n]
        scores = self._scores[:n]
        ratio = self._ratio[:n]
        for array in (seed, ints, flags, scores, ratio):
            array.flags.writeable = False
        seen = (seed, ints[0], ints[1], flags[0], flags[1], scores, ints[2])
        features = None if self._features is None else self._features[:n]
        return Particles(
            *seen, ratio, flags[2], self._selection, features=features, owing=self._owing
        )

    def place(self, plan: Plan) -> None:
        """Add the particles that a plan makes, and mark those that it drops, or takes a gradient
        of."""
        rows = plan.rows
        (new,) = (rows.kind != CONTINUE).nonzero()
        if len(new):
            self._add(rows.parent[new], plan.seed[new])
        (up,) = (rows.kind == ASCEND).nonzero()
        if len(up):
            self._flags[2, rows.parent[up]] = True
        if len(plan.drop):
            self.drop(plan.drop)

    def drop(self, uids: IntArray) -> None:
        """Give these particles up."""
        self._flags[1, uids] = False

    def forget(self, uids: IntArray) -> None:
        """Give up particles that never began. Where the last fresh seed is one of them, its group
        did not, either."""
        self.drop(uids)
        if np.isin(np.flatnonzero(self.view.parent < 0)[-1:], uids).any():
            self._owing = True
            self.view = self._seen(self._ints, self._flags)

    def own(self, uids: IntArray, has_gradient: BoolArray) -> None:
        """Whether the gradient at the step that these particles are at, or go to, is paid; see
        owned_gradients."""
        self._flags[2, uids] = has_gradient

    def _add(self, parents: IntArray, seeds: IntArray) -> None:
        n = self._n
        more = len(parents)
        if n + more > self._ints.shape[1]:
            room = max(n, more)
            self._seed = np.concatenate([self._seed, np.empty(room, np.uint64)])
            self._ints = np.concatenate([self._ints, np.empty((3, room), int)], axis=1)
            self._flags = np.concatenate([self._flags, np.empty((3, room), bool)], axis=1)
            self._ratio = np.concatenate([self._ratio, np.zeros(room)])
            self._scores = np.concatenate(
                [self._scores, np.full((room, *self._scores.shape[1:]), np.nan)]
            )
            if self._features is not None:
                self._features = np.concatenate(
                    [self._features, np.full((room, self._features.shape[1]), np.nan)]
                )
        rows = np.arange(n, n + more)
        self._seed[rows] = seeds
        self._ints[0, rows], self._ints[1, rows], self._ints[2, rows] = parents, 0, -1
        self._flags[0, rows], self._flags[1, rows], self._flags[2, rows] = False, True, False
        self._n, self._owing = n + more, self._owing and bool((parents >= 0).all())
        self.view = self._seen(self._ints, self._flags)

    def record(self, outcome: Outcome) -> None:
        """Where particles got to, and their scores there."""
        uids = outcome.uids
        self._ints[1, uids] = outcome.step
        self._flags[0, uids] = outcome.cached
        if outcome.has_gradient is not None:
            self._flags[2, uids] = outcome.has_gradient
        if outcome.log_ratio is not None:
            self._ratio[uids] = outcome.log_ratio
        if outcome.scores is not None:
            self._scores[uids, outcome.step] = outcome.scores
            self._ints[2, uids] = outcome.step
        if outcome.features is not None:
            if self._features is None:
                self._features = np.full((self._ints.shape[1], outcome.features.shape[1]), np.nan)
                self.view = self._seen(self._ints, self._flags)
            self._features[uids] = outcome.features
