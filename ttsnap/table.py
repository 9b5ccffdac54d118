"""The growing table of a search's particles, behind the read-only view that algorithms get."""

from __future__ import annotations

import numpy as np

from ttsnap.types import IntArray, Move, Outcome, Particles, Utility


class ParticleTable:
    """Arrays with spare room; `view` shows the part in use without copying it."""

    def __init__(self, steps: int, rewards: int, utility: Utility, room: int = 16) -> None:
        self._utility = utility
        self._n = 0
        self._seeds = 0
        self._ints = np.full((4, room), -1)  # seed, parent, step, scored
        self._flags = np.zeros((2, room), bool)  # cached, alive
        self._scores = np.full((room, steps + 1, rewards), np.nan)

    def view(self) -> Particles:
        n = self._n
        ints, flags = self._ints[:, :n], self._flags[:, :n]
        arrays = (ints[0], ints[1], ints[2], flags[0], flags[1], self._scores[:n], ints[3])
        for a in arrays:
            a.flags.writeable = False
        return Particles(*arrays, self._utility)

    def place(self, move: Move, seed: int) -> tuple[IntArray, IntArray]:
        """Give each row of a move its uid (continued or new) and its seed; fresh seeds count up from `seed`."""
        uids = np.empty(len(move), int)
        seen: set[int] = set()
        for i, (parent, start) in enumerate(zip(move.parent.tolist(), move.start.tolist(), strict=True)):
            if parent >= 0 and parent not in seen and start == self._ints[2, parent]:
                seen.add(parent)
                uids[i] = parent
                continue
            uids[i] = self._add(parent, seed)
        return uids, self._ints[0, uids]

    def _add(self, parent: int, seed: int) -> int:
        uid = self._n
        if uid == self._ints.shape[1]:
            self._ints = np.concatenate([self._ints, np.full_like(self._ints, -1)], axis=1)
            self._flags = np.concatenate([self._flags, np.zeros_like(self._flags)], axis=1)
            self._scores = np.concatenate([self._scores, np.full_like(self._scores, np.nan)])
        self._n += 1
        if parent < 0:
            own = seed + self._seeds
            self._seeds += 1
        else:
            own = int(self._ints[0, parent])
        self._ints[:, uid] = own, parent, 0, -1
        self._flags[:, uid] = False, True
        return uid

    def record(self, outcome: Outcome) -> None:
        """Where a particle got to, and its scores there."""
        uid = outcome.uid
        self._ints[2, uid] = outcome.step
        self._flags[0, uid] = outcome.cached
        if outcome.scores is not None:
            self._scores[uid, outcome.step] = outcome.scores
            self._ints[3, uid] = outcome.step

    def drop(self, uids: IntArray) -> None:
        self._flags[1, uids] = False
