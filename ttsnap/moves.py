"""Checks and cuts of moves."""

from __future__ import annotations

import numpy as np

from ttsnap.types import Algorithm, BoolArray, Grid, IntArray, Move, Particles


def validate(move: Move, particles: Particles, grid: Grid, algorithm: Algorithm) -> None:
    """ValueError where a move is not possible; an algorithm's bug, caught before it costs anything."""
    who = type(algorithm).__name__
    own = move.parent >= 0
    if bool((move.parent >= len(particles)).any()) or bool((move.parent < -1).any()):
        raise ValueError(f"{who}: parents {move.parent.tolist()} outside -1..{len(particles) - 1}")
    if bool((~particles.alive[move.parent[own]]).any()):
        raise ValueError(f"{who}: parents {move.parent[own].tolist()} include dropped particles")
    at = np.where(own, particles.step[move.parent] if len(particles) else 0, 0)
    if bool(((move.start < 0) | (move.start > at) | (move.stop < move.start) | (move.stop > grid.steps)).any()):
        raise ValueError(
            f"{who}: rows must go 0 <= start <= the parent's step and start <= stop <= {grid.steps}, got "
            f"start {move.start.tolist()} stop {move.stop.tolist()} parents at {at.tolist()}"
        )
    if bool(((move.mix < 0) | (move.mix > 1)).any()):
        raise ValueError(f"{who}: mix must be in [0, 1], got {move.mix.tolist()}")
    mixed, back = mixes(move), own & (move.start < at) & (move.start > 0)
    stays = move.parent[own & ~mixed & ~back & (move.start == at)]
    does = {"branches": len(np.unique(stays)) < len(stays), "renoises": bool(back.any()), "mixes": bool(mixed.any())}
    for name in [name for name, done in does.items() if done and not getattr(algorithm, name, False)]:
        raise ValueError(f"{who}: a move {name}, but the algorithm declares {name} = False")


def mixes(move: Move) -> BoolArray:
    """(n,) rows that start from their parent's initial noise, mixed with fresh noise."""
    found: BoolArray = (move.parent >= 0) & (move.start == 0) & (move.mix < 1)
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
    return Move(*cut, draft=None if move.draft is None else move.draft[rows])
