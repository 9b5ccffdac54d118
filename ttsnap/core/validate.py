"""Checks of a move before it costs anything, and of algorithms that go on making moves which cost nothing."""

from __future__ import annotations

import math

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.moves import Move
from ttsnap.core.particles import Particles
from ttsnap.core.protocols import Algorithm
from ttsnap.core.rows import first_ones, mixes, nears

IDLE = 1000
"""As many moves in a row as an algorithm may make that cost nothing: no budget would ever end them."""
_COLUMNS = {"parent": "i", "start": "i", "stop": "i", "score": "b", "mix": "fi"}
_COLUMNS |= {"draft": "i", "near": "i", "ascend": "b"}
"""Of what kinds the columns of a move are, by numpy's letters."""
_KINDS = {"i": "whole number", "b": "truth value", "fi": "number"}
"""What numpy's kinds of columns are called, for messages."""


def validate(move: Move, particles: Particles, grid: Grid, algorithm: Algorithm) -> None:
    """ValueError where a move is not possible; an algorithm's bug, caught before it costs anything."""
    who = type(algorithm).__name__
    _check_columns(move, who)
    if move.parent.max(initial=-1) >= len(particles) or move.parent.min(initial=-1) < -1:
        raise ValueError(f"{who}: parents {move.parent.tolist()} outside -1..{len(particles) - 1}")
    own = move.parent >= 0
    if np.count_nonzero(~particles.alive[move.parent[own]]):
        raise ValueError(f"{who}: parents {move.parent[own].tolist()} include dropped particles")
    at = np.where(own, particles.step[move.parent] if len(particles) else 0, 0)
    ways = (move.start >= 0) & (move.start <= at) & (move.stop >= move.start) & (move.stop <= grid.steps)
    if np.count_nonzero(ways) < len(move):
        raise ValueError(
            f"{who}: rows must go 0 <= start <= the parent's step and start <= stop <= {grid.steps}, got "
            f"start {move.start.tolist()} stop {move.stop.tolist()} parents at {at.tolist()}"
        )
    if not (move.mix.min(initial=1) >= 0 and move.mix.max(initial=0) <= 1):  # a nan is in no range
        raise ValueError(f"{who}: mix must be in [0, 1], got {move.mix.tolist()}")
    _check_given_up(move, particles, who)
    mixed, back = mixes(move), (move.start < at) & (move.start > 0)
    if move.near is not None and not _siblings(move, move.near, particles, at):
        raise ValueError(
            f"{who}: a row near another must take one step from its parent, as that one did, after a plain row of it, "
            f"got near {move.near.tolist()} parents {move.parent.tolist()} at {at.tolist()} "
            f"start {move.start.tolist()} stop {move.stop.tolist()}"
        )
    stays = move.parent[own & ~mixed & (move.start == at)]
    does = {
        "branches": np.count_nonzero(first_ones(stays, len(particles))) < len(stays),
        "renoises": np.count_nonzero(back) > 0,
        "mixes": np.count_nonzero(mixed) > 0,
        "nears": move.near is not None and bool(nears(move).any()),
    }
    if (up := move.ascend) is not None:
        if bool((up & ~mixed).any()) or bool((at[up] < grid.steps).any()):
            raise ValueError(f"{who}: rows that ascend start from mixed noise (start 0, mix below 1) of finished "
                             f"parents, got parents at {at[up].tolist()} mix {move.mix[up].tolist()}")  # fmt: skip
        if bool(up.any()) and getattr(algorithm, "ascends", None) is None:
            raise ValueError(f"{who}: a move ascends, but the algorithm declares no ascends")
    for name in [name for name, done in does.items() if done and not getattr(algorithm, name, False)]:
        raise ValueError(f"{who}: a move {name}, but the algorithm declares {name} = False")


def check_idle(moves: int, algorithm: Algorithm) -> None:
    """RuntimeError after more than IDLE moves in a row that cost nothing."""
    if moves > IDLE:
        raise RuntimeError(f"{type(algorithm).__name__} made over {IDLE} moves in a row that cost nothing, which no "
                           "budget ends; let it advance or score a particle, or return None")  # fmt: skip


def _check_columns(move: Move, who: str) -> None:
    """ValueError where the columns of a move are no arrays of one value a row, of the kinds that Move names."""
    shape = move.parent.shape
    for name, kinds in _COLUMNS.items():
        column = getattr(move, name)
        if column is None and name in ("draft", "near", "ascend"):
            continue
        if column.shape != shape or len(shape) != 1 or column.dtype.kind not in kinds:
            raise ValueError(f"{who}: {name} must hold one {_KINDS[kinds]} for each of the {move.parent.size} rows of "
                             f"the move, got {column.dtype} of shape {column.shape}")  # fmt: skip
    if math.isnan(move.value):
        raise ValueError(f"{who}: the value of a move is nan")


def _check_given_up(move: Move, particles: Particles, who: str) -> None:
    """ValueError where a move drops or rejects what is not there, or drops what its own rows start from."""
    for name, uids in (("drop", move.drop), ("reject", move.reject)):
        if len(uids) and not (uids.dtype.kind == "i" and uids.min() >= 0 and uids.max() < len(particles)):
            raise ValueError(f"{who}: {name} must list uids in 0..{len(particles) - 1}, got {uids.tolist()}")
    if not len(move.drop):
        return
    if np.count_nonzero(~particles.alive[move.drop]):
        raise ValueError(f"{who}: drop {move.drop.tolist()} includes particles that were dropped before")
    needed = move.parent if move.near is None else np.concatenate([move.parent, move.near])
    needed = needed[(needed >= 0) & (needed < len(particles))]
    dropped = np.zeros(len(particles), bool)
    dropped[move.drop] = True
    if np.count_nonzero(dropped[needed]):
        both = sorted(set(needed[dropped[needed]].tolist()))
        raise ValueError(f"{who}: a move drops particles {both}, from which its own rows go on")


def _siblings(move: Move, near: IntArray, particles: Particles, at: IntArray) -> bool:
    """Whether every row near another could have the step of that one, as far as the table tells."""
    rows = np.flatnonzero(near >= 0)
    if bool((near >= len(particles)).any()) or bool((near < -1).any()) or bool((move.parent[rows] < 0).any()):
        return False
    parent, other, start = move.parent[rows], near[rows], move.start[rows]
    # The plain row, which waits or goes on, keeps what was paid at the parent's step.
    parents, first = np.unique(move.parent, return_index=True)
    first = first[np.searchsorted(parents, parent)]
    plain = (near[first] < 0) & ~mixes(move)[first] & (move.start[first] == start)
    there = (start == at[rows]) & (move.stop[rows] == start + 1) & plain
    same = particles.alive[other] & (particles.parent[other] == parent) & (particles.step[other] == start + 1)
    return bool((there & same).all())
