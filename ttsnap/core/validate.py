"""Checks of a move before it costs anything, and of algorithms that go on making moves which cost
nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.moves import ASCEND, BRANCH, CONTINUE, FRESH, MIX, NEAR, RENOISE, Kind, Move, Rows
from ttsnap.core.needs import Need, declared
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.core.protocols import Algorithm

IDLE = 1000
"""As many moves in a row as an algorithm may make that cost nothing: no budget would ever end
them."""
_COLUMNS = {"kind": "i", "parent": "i", "start": "i", "stop": "i", "score": "b", "share": "fi"}
"""Of what types the columns of a move are, by numpy's letters."""
_TYPES = {"i": "whole number", "b": "truth value", "fi": "number"}
"""What numpy's types of columns are called, for messages."""

Begins = Callable[[Rows, IntArray, int], BoolArray]
"""rows (n,) of one kind, the steps `at` (n,) where their parents are, K -> (n,) whether they may
begin there."""
RULES: dict[int, tuple[Begins, str]] = {
    FRESH: (
        lambda rows, at, end: (rows.parent < 0) & (rows.start == 0),
        "fresh seeds start at step 0, with parent -1",
    ),
    CONTINUE: (
        lambda rows, at, end: rows.start == at,
        "a particle goes on from the step where it is",
    ),
    RENOISE: (
        lambda rows, at, end: (rows.start > 0) & (rows.start < at),
        "a renoised particle starts after step 0 and before the parent's step",
    ),
    MIX: (lambda rows, at, end: rows.start == 0, "mixed initial noise starts at step 0"),
    ASCEND: (
        lambda rows, at, end: (rows.start == 0) & (at == end),
        "rows that ascend start at step 0, from finished parents",
    ),
    NEAR: (
        lambda rows, at, end: (rows.start == at - 1) & (rows.stop == at),
        (
            "a row near another must take one step from its parent, as that one did, after a plain"
            " row of it"
        ),
    ),
}
"""Where rows of each kind begin, and what to say where they do not."""
NEED_OF: dict[int, Need] = {
    BRANCH: Need.BRANCH,
    NEAR: Need.NEAR,
    RENOISE: Need.RENOISE,
    MIX: Need.MIX,
    ASCEND: Need.ASCEND,
}
"""What rows of a kind need of an engine."""


def validate(move: Move, particles: Particles, grid: Grid, algorithm: Algorithm) -> None:
    """ValueError where a move is not possible: an algorithm's bug, caught before it costs
    anything."""
    who = type(algorithm).__name__
    rows = move.rows
    _check_columns(move, who)
    own = rows.kind != FRESH
    if np.count_nonzero((rows.parent >= len(particles)) | (own & (rows.parent < 0))):
        raise ValueError(f"{who}: parents {rows.parent.tolist()} outside 0..{len(particles) - 1}")
    if np.count_nonzero(~particles.alive[rows.parent[own]]):
        raise ValueError(f"{who}: parents {rows.parent[own].tolist()} include dropped particles")
    if np.count_nonzero((rows.stop < rows.start) | (rows.stop > grid.steps)):
        raise ValueError(
            f"{who}: rows must go from start to stop, at most {grid.steps}, got "
            f"start {rows.start.tolist()} stop {rows.stop.tolist()}"
        )
    if np.count_nonzero((rows.share >= 0) & (rows.share <= 1)) < len(move):  # a nan is in no range
        raise ValueError(f"{who}: share must be in [0, 1], got {rows.share.tolist()}")
    kinds = set(rows.kind.tolist())
    for kind in kinds:
        _check_begins(
            kind, rows if len(kinds) == 1 else rows.take(rows.kind == kind), particles, grid, who
        )
    _check_given_up(move, particles, who)
    if NEAR in kinds:
        _check_siblings(rows, particles, who)


def check_idle(moves: int, algorithm: Algorithm) -> None:
    """RuntimeError after more than IDLE moves in a row that cost nothing."""
    if moves > IDLE:
        raise RuntimeError(
            f"{type(algorithm).__name__} made over {IDLE} moves in a row that cost nothing, which"
            " no budget ends; let it advance or score a particle, or return None"
        )


def _check_columns(move: Move, who: str) -> None:
    """ValueError unless the columns of a move are arrays of one value a row, of the types that Rows
    names."""
    shape = move.rows.parent.shape
    for (name, types), column in zip(_COLUMNS.items(), move.rows, strict=True):
        if column.shape != shape or len(shape) != 1 or column.dtype.kind not in types:
            raise ValueError(
                f"{who}: {name} must hold one {_TYPES[types]} for each of the"
                f" {move.rows.parent.size} rows of the move, got {column.dtype} of shape"
                f" {column.shape}"
            )
    if math.isnan(move.value):
        raise ValueError(f"{who}: the value of a move is nan")


def _check_begins(kind: int, rows: Rows, particles: Particles, grid: Grid, who: str) -> None:
    """ValueError where rows of this kind do not begin where such may, or where no algorithm may use
    the kind."""
    if kind not in RULES:
        kinds = ", ".join(f"{Kind(known).name} {known}" for known in RULES)
        raise ValueError(f"{who}: no row can be of kind {kind}; kinds to ask for are {kinds}")
    at = np.zeros(len(rows.parent), int) if kind == FRESH else particles.step[rows.parent]
    begins, sentence = RULES[kind]
    if not begins(rows, at, grid.steps).all():
        raise ValueError(
            f"{who}: {sentence}, got parents {rows.parent.tolist()} at steps {at.tolist()}, start "
            f"{rows.start.tolist()} stop {rows.stop.tolist()}"
        )


def _check_given_up(move: Move, particles: Particles, who: str) -> None:
    """ValueError where a move drops or rejects what is not there, or drops what its own rows start
    from."""
    for name, uids in (("drop", move.drop), ("reject", move.reject)):
        if len(uids) and (
            uids.dtype.kind != "i" or np.count_nonzero((uids < 0) | (uids >= len(particles)))
        ):
            raise ValueError(
                f"{who}: {name} must list uids in 0..{len(particles) - 1}, got {uids.tolist()}"
            )
    if not len(move.drop):
        return
    if np.count_nonzero(~particles.alive[move.drop]):
        raise ValueError(
            f"{who}: drop {move.drop.tolist()} includes particles that were dropped before"
        )
    near = move.rows.kind == NEAR
    needed = np.concatenate([move.rows.parent, particles.parent[move.rows.parent[near]]])
    dropped = np.zeros(len(particles), bool)
    dropped[move.drop] = True
    needed = needed[needed >= 0]
    if np.count_nonzero(dropped[needed]):
        both = sorted(set(needed[dropped[needed]].tolist()))
        raise ValueError(f"{who}: a move drops particles {both}, from which its own rows go on")


def _check_siblings(rows: Rows, particles: Particles, who: str) -> None:
    """ValueError where a row near another one could not take that one's step, as far as the table
    tells.

    The parent needs a plain row in the same move, which keeps what was paid at the parent's step.
    """
    near = rows.kind == NEAR
    parent = particles.parent[rows.parent[near]]
    plain = np.flatnonzero(rows.kind == CONTINUE)
    # of each particle, its first plain row; a fresh seed's is none
    first = np.full(len(particles) + 1, len(near))
    first[rows.parent[plain][::-1]] = plain[::-1]
    alive = (parent >= 0) & particles.alive[parent]
    there = (
        alive
        & (particles.step[parent] == rows.start[near])
        & (first[parent] < np.flatnonzero(near))
    )
    if not there.all():
        at = particles.step[parent].tolist()
        raise ValueError(
            f"{who}: {RULES[NEAR][1]}, got rows near {rows.parent[near].tolist()}, children of "
            f"{parent.tolist()} at steps {at}, plain rows of {rows.parent[plain].tolist()}"
        )


def check_declared(plan: Plan, algorithm: Algorithm, *, drafter: bool) -> None:
    """ValueError where a plan does what the algorithm did not declare among its needs.

    drafter: whether the task has one (Task.draft_calls), which the algorithm may then use
        undeclared.
    """
    does = {
        NEED_OF[kind] for kind in set(plan.rows.kind.tolist()) if kind in NEED_OF
    } | plan.look.needs
    if drafter:
        does -= {Need.DRAFT}
    for need in sorted(does and does - declared(algorithm.needs)):
        raise ValueError(
            f"{type(algorithm).__name__}: a move needs to {need.value}, but the algorithm does not "
            f"declare Need.{need.name}"
        )
