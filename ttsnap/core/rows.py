"""What the rows of a move are (mixed, near another, ascending, drafted, staying with a gradient), and some of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.moves import Move
from ttsnap.core.particles import Particles


def mixes(move: Move) -> BoolArray:
    """(n,) rows that start from their parent's initial noise, mixed with fresh noise."""
    found: BoolArray = (move.parent >= 0) & (move.start == 0) & (move.mix < 1)
    return found if move.near is None else found & ~nears(move)


def nears(move: Move) -> BoolArray:
    """(n,) rows whose step noise is near that of another child of their parent; mix is then that noise's share."""
    return np.zeros(move.parent.shape, bool) if move.near is None else move.near >= 0


def ascends(move: Move) -> BoolArray:
    """(n,) rows that start from their parent's initial noise, turned along a gradient."""
    return np.zeros(move.parent.shape, bool) if move.ascend is None else move.ascend


def first_ones(uids: IntArray, particles: int) -> BoolArray:
    """(n,) which of these uids of so many particles are the first of their kind."""
    rows, first = np.arange(len(uids)), np.empty(particles, int)
    first[uids[::-1]] = rows[::-1]  # of several values for one place, numpy keeps the last
    found: BoolArray = first[uids] == rows
    return found


def pulls(move: Move, particles: Particles, guided: BoolArray) -> BoolArray:
    """(n,) rows that stay at a guided step and own its gradient afterwards: it was paid before, or by this move.

    guided: (K+1,) whether a reward's gradient guides the step on from there. A staying row comes to own the gradient
    because a moving sibling pays for it: all children of one particle share that.
    """
    own = (move.parent >= 0) & ~mixes(move)
    parent = np.where(own, move.parent, 0)
    here = own & (move.start == particles.step[parent]) if len(particles) else own
    waits, goes = here & (move.stop == move.start), here & (move.stop > move.start) & guided[move.start]
    if particles.pulled is None or not waits.any():
        return np.zeros(len(move), bool)
    shared = np.isin(move.parent, move.parent[goes]) & (particles.cached[parent] | move.score)
    found: BoolArray = waits & (particles.pulled[parent] | shared)
    return found


def draft_points(stop: int, steps: int, draft: int) -> list[int]:
    """Grid steps at which a coarse rollout of `draft` evaluations from `stop` evaluates, but for the first, `stop`."""
    points = [stop + round(j * (steps - stop) / draft) for j in range(1, draft)]
    return sorted({k for k in points if stop < k < steps})


def drafted(move: Move, grid: Grid) -> IntArray:
    """(n,) evaluations that drafts add to the rows of a move."""
    found = np.zeros(move.stop.shape, int)
    if move.draft is not None:
        for i in np.flatnonzero(move.score & (move.draft > 1)):
            found[i] = len(draft_points(int(move.stop[i]), grid.steps, int(move.draft[i])))
    return found


def pick(move: Move, rows: IntArray) -> Move:
    """Some rows of a move; it drops nothing."""
    cut = (move.parent[rows], move.start[rows], move.stop[rows], move.score[rows], move.mix[rows])
    more: dict[str, Any] = {name: getattr(move, name) for name in ("draft", "near", "ascend")}
    more = {name: None if column is None else column[rows] for name, column in more.items()}
    return Move(*cut, **more)
