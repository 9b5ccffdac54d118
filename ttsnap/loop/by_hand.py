"""What a person says of the candidates of a running search: drop this one, finish that one."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ttsnap.core.arrays import IntArray
from ttsnap.core.moves import CONTINUE, FRESH, NEAR, Move, advance
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.core.results import FINISH

Said = list[tuple[str, int]]
"""Verbs (DROP or FINISH) with the uids that they are about, in order."""


class Remainder(NamedTuple):
    """What is left of an algorithm's move, after a person's commands."""

    move: Move
    at: IntArray
    """(n,) places of its rows in the algorithm's move."""
    moved: IntArray
    """(N,) as of Particles, for all rows of the algorithm's move: -1 for those that are left."""


def open_ones(said: Said, particles: Particles) -> Said:
    """The last command about each candidate that is neither dropped nor finished."""
    alive = particles.alive & ~particles.finished
    last = {uid: verb for verb, uid in said if 0 <= uid < len(particles) and alive[uid]}
    return [(verb, uid) for uid, verb in last.items()]


def of(verb: str, said: Said) -> list[int]:
    """The uids of commands of one kind."""
    return [uid for each, uid in said if each == verb]


def alone(plan: Plan) -> bool:
    """Whether no row of a plan shares with another one what it begins with."""
    return bool((plan.rows.kind <= CONTINUE).all())


def resumed(
    said: Said, plan: Plan | None, taken_back: Outcome | None, particles: Particles
) -> Move:
    """What follows commands: who is finished goes first, then what is left of a plan whose rows
    were taken back, without who was named."""
    named = {uid for _, uid in said}
    stops = dict.fromkeys(of(FINISH, said), (particles.scores.shape[-2] - 1, True))
    if plan is not None and taken_back is not None:
        back = set(taken_back.uids.tolist()) - named
        rows = zip(plan.uid.tolist(), plan.rows.stop, plan.rows.score, strict=True)
        stops |= {uid: (stop, score) for uid, stop, score in rows if uid in back}
    stop = np.array([stop for stop, _ in stops.values()], int)
    score = np.array([score for _, score in stops.values()], bool)
    move = advance(particles, [*stops], stop, score=score)
    return move if plan is None else replace(move, look=plan.look)


def without(move: Move, particles: Particles, dropped: IntArray) -> Remainder:
    """An algorithm's move without rows that begin at a candidate which a person dropped, and
    without those that go on from one which a person finished: it is further than the algorithm
    wants."""
    rows = move.rows
    gone = ~particles.alive
    gone[dropped] = True
    own = rows.kind != FRESH
    # of a row that was dropped, or cut off, the algorithm may name the child
    lost = own & ((rows.parent < 0) | gone[rows.parent])
    near = (rows.kind == NEAR) & ~lost
    sibling = rows.parent[near]
    lost[near] |= gone[particles.parent[sibling]] | particles.finished[sibling]
    done = (rows.kind == CONTINUE) & ~lost & particles.finished[rows.parent]
    first = np.zeros(len(rows.parent), bool)
    first[np.unique(rows.parent, return_index=True)[1]] = True
    (at,) = (~lost & ~done).nonzero()
    drop = move.drop[particles.alive[move.drop]]
    left = replace(move, rows=rows.take(at), drop=drop)
    return Remainder(left, at, np.where(done & first, rows.parent, -1))
