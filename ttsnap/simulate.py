"""Thousands of searches at once over recorded scores, with the algorithm objects that run live."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ttsnap import utility as utilities
from ttsnap.budget import price_move
from ttsnap.types import Algorithm, Cost, FloatArray, Grid, IntArray, Move, Particles, Utility

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
    state, spent = algorithm.init(grid), Cost()
    shape = (searches, 0)
    particles = Particles(
        *(np.empty(shape, int) for _ in range(3)), *(np.empty(shape, bool) for _ in range(2)),
        np.empty((*shape, grid.steps + 1, rewards)), np.empty(shape, int), utility,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    while True:
        move, state = algorithm.step(state, particles, rng)
        if move is None:
            break
        first = particles.of(0)
        one = Move(*(a[0] if a.ndim > 1 else a for a in (move.parent, move.start, move.stop, move.score, move.mix)))
        spent = spent + price_move(one, first, grid, rewards)
        particles = _carry_out(move, particles, lookup)
    done = particles.finished
    value = np.full(done.shape, -np.inf)
    uids = np.nonzero(done)[-1].reshape(searches, -1)
    np.put_along_axis(value, uids, particles.value(uids), -1)
    return value.argmax(-1), spent


def _carry_out(move: Move, particles: Particles, lookup: Lookup) -> Particles:
    """Particles after a move: fresh ones appended, others advanced, dropped ones dead, scores looked up."""
    b, n = particles.step.shape
    if move.parent.ndim == 1:  # fresh seeds, the same in every search
        rows = np.broadcast_to(np.arange(n, n + len(move)), (b, len(move)))
        grown = [_grow(a, len(move)) for a in (particles.seed, particles.parent, particles.step, particles.cached,
                                               particles.alive, particles.scores, particles.scored)]  # fmt: skip
        seed, parent, step, cached, alive, scores, scored = grown
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
    stop, score = (np.broadcast_to(a, rows.shape) for a in (move.stop, move.score))
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


def _grow(array: np.ndarray, more: int) -> np.ndarray:
    fill = np.nan if array.dtype.kind == "f" else 0
    return np.concatenate([array, np.full((array.shape[0], more, *array.shape[2:]), fill, array.dtype)], axis=1)
