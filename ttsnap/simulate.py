"""Thousands of searches at once over recorded scores, with the algorithm objects that run live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ttsnap import utility as utilities
from ttsnap.budget import price_move
from ttsnap.types import Algorithm, Cost, FloatArray, Grid, IntArray, Move, Particles, Task, Utility

Lookup = Callable[[IntArray, IntArray], FloatArray]
"""(searches, n) rows of each search's candidates, (searches, n) steps -> (searches, n, R) scores."""


def lockstep(
    algorithm: Algorithm, lookup: Lookup, searches: int, grid: Grid, rewards: int = 1, utility: Utility = utilities.mean
) -> tuple[IntArray, Cost]:
    """Run `searches` searches in step; the winner's row in each, (searches,), and what each one cost.

    For algorithms whose moves have a shape that scores do not change (`Algorithm.lockstep`): all searches then make
    moves of the same shape and cost, as `search` would one by one (tested). Their n must be set.
    """
    if not algorithm.lockstep or algorithm.n is None:
        raise ValueError(f"{algorithm} cannot run in lockstep: it must be a lockstep algorithm with n set")
    state, spent = algorithm.init(Task(grid)), Cost()
    ints, flags = np.empty((searches, 0), int), np.empty((searches, 0), bool)
    scores = np.empty((searches, 0, grid.steps + 1, rewards))
    particles = Particles(ints, ints, ints, flags, flags, scores, ints, utility)
    rng = np.random.default_rng(0)
    while True:
        move, state = algorithm.step(state, particles, rng)
        if move is None:
            break
        spent = spent + price_move(_first(move), particles.of(0), grid, rewards)
        particles = _carry_out(move, particles, lookup)
    done = particles.finished
    value = np.full(done.shape, -np.inf)
    uids = np.nonzero(done)[-1].reshape(searches, -1)
    np.put_along_axis(value, uids, particles.value(uids), -1)
    return value.argmax(-1), spent


def _first(move: Move) -> Move:
    """The move of the first search; all have the same shape and cost."""
    if move.parent.ndim == 1:
        return move
    return Move(move.parent[0], move.start[0], move.stop[0], move.score[0], move.mix[0])


def _carry_out(move: Move, particles: Particles, lookup: Lookup) -> Particles:
    """Particles after a move: fresh ones appended, others advanced, dropped ones dead, scores looked up."""
    b, n = particles.step.shape
    if move.parent.ndim == 1:  # fresh seeds, the same in every search
        rows: IntArray = np.broadcast_to(np.arange(n, n + len(move)), (b, len(move)))
        p, more = particles, len(move)
        seed, parent, step, scored = (_grow(a, more) for a in (p.seed, p.parent, p.step, p.scored))
        cached, alive, scores = _grow(p.cached, more), _grow(p.alive, more), _grow(p.scores, more)
        np.put_along_axis(seed, rows, rows, -1)
        np.put_along_axis(parent, rows, -1, -1)
        np.put_along_axis(alive, rows, True, -1)
        np.put_along_axis(scored, rows, -1, -1)
    else:
        rows = move.parent
        seed, parent, scores = particles.seed, particles.parent, particles.scores
        step, cached, alive, scored = (
            a.copy() for a in (particles.step, particles.cached, particles.alive, particles.scored)
        )
    stop: IntArray = np.broadcast_to(move.stop, rows.shape)
    score = np.broadcast_to(move.score, rows.shape)
    np.put_along_axis(step, rows, stop, -1)
    np.put_along_axis(cached, rows, score & (stop < scores.shape[-2] - 1), -1)
    if move.drop.ndim > 1:
        np.put_along_axis(alive, move.drop, False, -1)
    if score.all():
        scores[np.arange(b)[:, None], rows, stop] = lookup(rows, stop)
        np.put_along_axis(scored, rows, stop, -1)
    elif score.any():
        raise ValueError("lockstep moves score all of their rows or none")
    return Particles(seed, parent, step, cached, alive, scores, scored, particles.utility)


def _grow(array: Any, more: int) -> Any:
    fill = np.nan if array.dtype.kind == "f" else 0
    return np.concatenate([array, np.full((array.shape[0], more, *array.shape[2:]), fill, array.dtype)], axis=1)
