"""What an algorithm answers: a move, one row for each particle that it wants to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray, take
from ttsnap.core.looks import ESTIMATE, Estimator
from ttsnap.core.particles import Particles


class Kind(IntEnum):
    """What a row of a move does with its parent. An algorithm asks for all of these but BRANCH.

    Of the rows that CONTINUE one particle, the first does, and the others are resolved to BRANCH
    (plans.py).
    """

    FRESH = 0
    """A new particle from a fresh seed, at step 0. It has no parent (-1)."""
    CONTINUE = 1
    """The parent itself goes on, from the step where it is."""
    BRANCH = 2
    """A new particle goes on from where the parent is, with step noise of its own."""
    NEAR = 3
    """A new sibling of the `parent`, one step from where the parent came from. Its step noise is
    `share` times the parent's and sqrt(1 - share^2) fresh noise."""
    RENOISE = 4
    """A new particle: the parent's latent, noised forward to an earlier step."""
    MIX = 5
    """A new particle at step 0 from `share` times the parent's initial noise and sqrt(1 - share^2)
    fresh noise."""
    ASCEND = 6
    """As MIX, of a finished parent, with the direction in which its rewards rise in place of the
    fresh noise."""


FRESH, CONTINUE, BRANCH, NEAR, RENOISE, MIX, ASCEND = (kind.value for kind in Kind)
"""The same as plain numbers, which numpy compares faster."""


class Rows(NamedTuple):
    """The rows of a move, by columns. In lockstep (simulation/lockstep.py) a column may have a
    leading axis of searches.
    """

    kind: IntArray
    """(n,) of `Kind`."""
    parent: IntArray
    """(n,) uid to go on from, -1 for a fresh seed."""
    start: IntArray
    """(n,) step to go on from."""
    stop: IntArray
    """(n,) step to go to."""
    score: BoolArray
    """(n,) whether to score at `stop`."""
    share: FloatArray
    """(n,) in [0, 1], of old noise in the new, for kinds that mix noise."""

    def take(self, rows: IntArray | BoolArray | slice) -> Rows:
        """Some of the rows."""
        columns = self.kind[rows], self.parent[rows], self.start[rows], self.stop[rows]
        return Rows(*columns, self.score[rows], self.share[rows])


_NONE = np.empty(0, int)


@dataclass(frozen=True)
class Move:
    """What to do next: one row per child.

    The most wanted row comes first, since a search short of budget carries a prefix out.
    """

    rows: Rows
    look: Estimator = ESTIMATE
    """How unfinished particles are scored."""
    drop: IntArray = field(default_factory=lambda: _NONE)
    """Uids that are given up."""
    reject: IntArray = field(default_factory=lambda: _NONE)
    """Uids whose finished images are not to be returned."""
    value: float | FloatArray = 0.0
    """The price per evaluation up to which the move is worth making; (B,) in lockstep. It orders
    the moves of prompts that share a budget."""

    def __len__(self) -> int:
        return len(self.rows.parent)


MOST_SEEDS = 2**20
"""The most seeds that one move may start: their rows alone take 50 MB."""


def fresh(n: int, stop: int, *, score: bool = True, look: Estimator = ESTIMATE) -> Move:
    """Start n new seeds and take them to step `stop`. ValueError for more than a search can
    hold."""
    if n > MOST_SEEDS:
        raise ValueError(
            f"{n:,} seeds at once are more than the {MOST_SEEDS:,} that a search can hold; take a"
            " smaller n"
        )
    zero = np.zeros(n, int)
    return Move(
        Rows(zero, zero - 1, zero, np.full(n, stop), np.full(n, score), zero.astype(float)), look
    )


def advance(
    particles: Particles,
    uids: IntArray | Sequence[int],
    stop: IntArray | int,
    *,
    score: BoolArray | bool = True,
    drop: IntArray | Sequence[int] = (),
    look: Estimator = ESTIMATE,
) -> Move:
    """Take these particles, in this order, from where they are to `stop`; give up those in `drop`.

    A uid that is named again makes a child of that particle, which branches off where the particle
    was. To keep the particle as it is beside its children, name it once with its own step for
    `stop`, and `score` False.
    """
    parent = np.asarray(uids, int)
    n = parent.shape[-1:]  # in lockstep, these columns are the same for all searches
    columns = (
        np.full(n, CONTINUE),
        parent,
        take(particles.step, parent),
        np.full(n, stop),
        np.full(n, score),
    )
    return Move(Rows(*columns, np.ones(n)), look, drop=np.asarray(drop, int))


def renoise(
    parents: IntArray | Sequence[int], start: int, stop: int, *, drop: IntArray | Sequence[int] = ()
) -> Move:
    """A new particle for each of these parents, which may repeat: noised forward to step `start`,
    then to `stop`."""
    return _restarted(RENOISE, parents, start, 1.0, stop, drop)


def perturb(
    parents: IntArray | Sequence[int],
    share: FloatArray | float,
    stop: int,
    *,
    drop: IntArray | Sequence[int] = (),
) -> Move:
    """A new particle for each of these parents, from initial noise with this `share` of theirs, to
    `stop`."""
    return _restarted(MIX, parents, 0, share, stop, drop)


def ascend(
    parents: IntArray | Sequence[int],
    share: float,
    stop: int,
    *,
    drop: IntArray | Sequence[int] = (),
) -> Move:
    """As perturb, from these finished parents and along the gradient of their rewards instead of
    anywhere."""
    return _restarted(ASCEND, parents, 0, share, stop, drop)


def _restarted(
    kind: int,
    parents: IntArray | Sequence[int],
    start: int,
    share: FloatArray | float,
    stop: int,
    drop: IntArray | Sequence[int],
) -> Move:
    parent = np.asarray(parents, int)
    n = parent.shape
    columns = (
        np.full(n, kind),
        parent,
        np.full(n, start),
        np.full(n, stop),
        np.ones(n, bool),
        np.full(n, share),
    )
    return Move(Rows(*columns), drop=np.asarray(drop, int))
