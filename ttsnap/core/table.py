"""The growing table of a search's particles, behind the read-only view that algorithms get."""

from __future__ import annotations

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.moves import Move
from ttsnap.core.particles import Particles, Utility
from ttsnap.core.protocols import Outcome
from ttsnap.core.rows import first_ones, mixes, nears


class ParticleTable:
    """Arrays with spare room; `view` shows the part in use without copying it."""

    def __init__(self, steps: int, rewards: int, utility: Utility) -> None:
        self._utility = utility
        self._n = self._seeds = 0
        self._seed = np.empty(0, np.uint64)
        self._ints = np.empty((3, 0), int)  # parent, step, scored
        self._flags = np.empty((3, 0), bool)  # cached, alive, pulled
        self._ratio = np.empty(0)
        self._scores = np.empty((0, steps + 1, rewards))
        self._view = self._seen(self._ints, self._flags)

    def view(self) -> Particles:
        """What is in use, read-only, as it is now and will be until particles are added."""
        return self._view

    def copy(self) -> Particles:
        """As view, but where they are, and what is paid there, stays as it is now."""
        return self._seen(self._ints[:, : self._n].copy(), self._flags[:, : self._n].copy())

    def _seen(self, ints: IntArray, flags: BoolArray) -> Particles:
        n = self._n
        ints, flags, seed = ints[:, :n], flags[:, :n], self._seed[:n]
        scores, ratio = self._scores[:n], self._ratio[:n]
        for array in (seed, ints, flags, scores, ratio):
            array.flags.writeable = False
        seen = (seed, ints[0], ints[1], flags[0], flags[1], scores, ints[2])
        return Particles(*seen, self._utility, ratio, flags[2])

    def place(self, move: Move, seed: int) -> tuple[IntArray, IntArray]:
        """Give each row of a move its uid (continued or new) and its seed; fresh seeds count up from `seed`.

        They are those of torch, uint64: 0 comes after 2^64 - 1.
        """
        uids = np.full(len(move), -1)
        (own,) = (move.parent >= 0).nonzero()
        if len(own):
            plain = ~mixes(move) if move.near is None else ~(mixes(move) | nears(move))
            own = own[(move.start[own] == self._ints[1, move.parent[own]]) & plain[own]]
            own = own[first_ones(move.parent[own], self._n)]
            uids[own] = move.parent[own]
        (new,) = (uids < 0).nonzero()
        if len(new):
            uids[new] = self._add(move.parent[new], seed)
        return uids, self._seed[uids]

    def _add(self, parents: IntArray, seed: int) -> IntArray:
        n, more = self._n, len(parents)
        if n + more > self._ints.shape[1]:
            room = max(n, more)
            self._seed = np.concatenate([self._seed, np.empty(room, np.uint64)])
            self._ints = np.concatenate([self._ints, np.empty((3, room), int)], axis=1)
            self._flags = np.concatenate([self._flags, np.empty((3, room), bool)], axis=1)
            self._ratio = np.concatenate([self._ratio, np.zeros(room)])
            self._scores = np.concatenate([self._scores, np.full((room, *self._scores.shape[1:]), np.nan)])
        rows = np.arange(n, n + more)
        fresh = parents < 0
        started = np.cumsum(fresh)
        counted = np.uint64(seed) + (self._seeds + started - 1).astype(np.uint64)
        self._seed[rows] = np.where(fresh, counted, self._seed[parents])
        self._ints[0, rows], self._ints[1, rows], self._ints[2, rows] = parents, 0, -1
        self._flags[0, rows], self._flags[1, rows], self._flags[2, rows] = False, True, False
        self._n, self._seeds = n + more, self._seeds + int(started[-1])
        self._view = self._seen(self._ints, self._flags)
        return rows

    def record(self, outcome: Outcome) -> None:
        """Where particles got to, and their scores there."""
        uids = outcome.uids
        self._ints[1, uids] = outcome.step
        self._flags[0, uids] = outcome.cached
        if outcome.pulled is not None:
            self._flags[2, uids] = outcome.pulled
        if outcome.log_ratio is not None:
            self._ratio[uids] = outcome.log_ratio
        if outcome.scores is not None:
            self._scores[uids, outcome.step] = outcome.scores
            self._ints[2, uids] = outcome.step

    def pull(self, uids: IntArray, pulled: BoolArray | bool) -> None:
        """Whether the gradient at the step that these are at, or go to, is paid."""
        self._flags[2, uids] = pulled

    def drop(self, uids: IntArray) -> None:
        self._flags[1, uids] = False
