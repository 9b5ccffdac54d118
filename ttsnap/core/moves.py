"""What an algorithm answers: a move, one row for each particle that it wants to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray, take
from ttsnap.core.particles import Particles


@dataclass(frozen=True)
class Move:
    """What to do next: one row per child, the most wanted first (a search short of budget keeps a prefix).

    parent (n,) uid to go on from, -1 for a fresh seed; start (n,) step to go on from: below the parent's step, its
    latent is noised forward to it, and at 0 a new particle starts from mix times the parent's initial noise and
    sqrt(1 - mix^2) fresh noise, mix (n,) in [0, 1]; stop (n,) step to go to; score (n,) whether to score there. `drop`
    lists uids that are given up. `value` is the price per evaluation up to which the move is worth making, for ordering
    moves of several prompts under a shared budget. `draft` (n,), where given, is how many evaluations a score at an
    unfinished step is made with: above 1 the particle is looked at after a short coarse rollout from where it is, over
    later grid points, which it then does not follow. `near` (n,), where given, holds -1 or, for a row of one step from
    the parent's own, the uid of an earlier child that one step from there made: the row's step noise is mix times that
    child's and sqrt(1 - mix^2) fresh noise. `ascend` (n,), where given, marks rows from start 0 of a finished parent
    whose new share of noise is not fresh but points along the gradient of the parent's rewards (ascent.py). `reject`
    lists uids whose finished images are not to be returned. The first row of a parent that starts at the parent's own
    step, with mix 1 and near nothing, continues that particle; every other row makes a new one.
    """

    parent: IntArray
    start: IntArray
    stop: IntArray
    score: BoolArray
    mix: FloatArray
    drop: IntArray = field(default_factory=lambda: np.empty(0, int))
    value: float = 0.0
    draft: IntArray | None = None
    near: IntArray | None = None
    ascend: BoolArray | None = None
    reject: IntArray = field(default_factory=lambda: np.empty(0, int))

    def __len__(self) -> int:
        return len(self.parent)

    def head(self, n: int) -> Move:
        """The first n rows."""
        cut = (self.parent[:n], self.start[:n], self.stop[:n], self.score[:n], self.mix[:n])
        more: dict[str, Any] = {name: getattr(self, name) for name in ("draft", "near", "ascend")}
        more = {name: None if column is None else column[:n] for name, column in more.items()}
        return Move(*cut, drop=self.drop, value=self.value, reject=self.reject, **more)


MOST_SEEDS = 2**20
"""The most seeds that one move may start: their rows alone take 50 MB."""


def fresh(n: int, stop: int, *, score: bool = True) -> Move:
    """Start n new seeds and take them to step `stop`. ValueError for more than a search can hold."""
    if n > MOST_SEEDS:
        raise ValueError(
            f"{n:,} seeds at once are more than the {MOST_SEEDS:,} that a search can hold; take a smaller n"
        )
    return Move(np.full(n, -1), np.zeros(n, int), np.full(n, stop), np.full(n, score), np.zeros(n))


def branch(parents: IntArray | Sequence[int], start: IntArray | int, stop: int, *, score: bool = True,
           drop: IntArray | Sequence[int] = ()) -> Move:  # fmt: skip
    """One row for each of these parents, which may repeat, from their step `start` to `stop`."""
    rows = np.asarray(parents, int)
    n = rows.shape
    at = np.broadcast_to(np.asarray(start, int), n)
    return Move(rows, at, np.full(n, stop), np.full(n, score), np.ones(n), drop=np.asarray(drop, int))


def perturb(parents: IntArray | Sequence[int], mix: float, stop: int, *, score: bool = True) -> Move:
    """One new particle for each of these parents, from initial noise that is near theirs, to `stop`."""
    rows = np.asarray(parents, int)
    n = rows.shape
    return Move(rows, np.zeros(n, int), np.full(n, stop), np.full(n, score), np.full(n, mix))


def climb(parents: IntArray | Sequence[int], mix: float, stop: int, *, score: bool = True) -> Move:
    """As perturb, from these finished parents and along the gradient of their rewards instead of anywhere."""
    return replace(perturb(parents, mix, stop, score=score), ascend=np.ones(len(parents), bool))


def advance(
    particles: Particles,
    uids: IntArray | Sequence[int],
    stop: int,
    *,
    score: bool = True,
    drop: IntArray | Sequence[int] = (),
) -> Move:
    """Take these particles, in this order, from where they are to step `stop`; give up those in `drop`."""
    rows = np.asarray(uids, int)
    shape = rows.shape[-1:]  # in lockstep, these columns are the same for all searches
    at = take(particles.step, rows)
    return Move(rows, at, np.full(shape, stop), np.full(shape, score), np.ones(shape), drop=np.asarray(drop, int))
