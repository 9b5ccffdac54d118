"""Thousands of searches at once over recorded scores, with the algorithm objects that run live.

Every array has a leading axis of B searches. A move has the same shape in all searches: a
schedule's rows, or the one row that a priced policy advances (`Move.value` (B,) says which searches
advance it). A column of a move that is the same in all searches may have no such axis, as those of
fresh seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ttsnap.core import utility as utilities
from ttsnap.core.arrays import BoolArray, FloatArray, IntArray, take
from ttsnap.core.grid import Task
from ttsnap.core.looks import Estimator
from ttsnap.core.moves import Kind, Move, Rows
from ttsnap.core.particles import Particles
from ttsnap.core.plans import row_costs
from ttsnap.core.protocols import Algorithm, AlgorithmState
from ttsnap.core.selection import Selection
from ttsnap.core.utility import Utility
from ttsnap.core.validate import check_idle
from ttsnap.simulation.shared_budget import SharedBudget, Tally

_Kind = TypeVar("_Kind", bound=np.generic)
Lookup = Callable[[IntArray, IntArray, IntArray, Estimator], FloatArray]
"""(searches (b,), candidates (b, n), steps (b, n), how they are scored) -> scores (b, n, R)."""


class Outcomes(NamedTuple):
    """What B searches found."""

    winner: IntArray
    """(B,) uid of the best finished image."""
    reward: FloatArray
    """(B,) its utility."""
    paid: Tally


def lockstep(
    algorithm: Algorithm,
    lookup: Lookup,
    searches: int,
    task: Task,
    *,
    rewards: int = 1,
    utility: Utility = utilities.mean,
    pot: int | None = None,
) -> Outcomes:
    """Run `searches` searches in step; each finds what `search` finds by itself (tested).

    pot: number of neighbouring searches that share `pot * task.allowance` evaluations. The most
    valuable moves come first, each search is sure of one image, and moves have one row. None: every
    search is on its own, and the algorithm (with n set) keeps to its allowance.

    Raises ValueError where the algorithm cannot run in lockstep, RuntimeError where it keeps making
    moves that cost nothing.
    """
    if not algorithm.lockstep or algorithm.n is None:
        raise ValueError(
            f"{algorithm} cannot run in lockstep: it must be a lockstep algorithm with n set"
        )
    run = _Lockstep(algorithm, lookup, searches, task, rewards, utility)
    pots = SharedBudget(searches, pot, task) if pot is not None else None
    asked = np.arange(searches)
    active = np.ones(searches, bool)
    idle = 0
    while (move := run.ask(asked)) is not None:
        active &= run.value > -np.inf
        if not active.any():
            break
        go = active
        takes = run.takes(move)
        if pots is not None:
            go, refused, last = pots.serve(
                run.particles, move, np.where(active, run.value, -np.inf), takes, run.paid
            )
            active &= ~refused
            run.complete(last)
        asked = np.flatnonzero(go)
        run.carry_out(asked, move, takes)
        idle = 0 if takes.spent(task)[asked].any() or takes.scored[asked].any() else idle + 1
        check_idle(idle, algorithm)
    return run.outcomes()


class _Lockstep:
    """B searches under way: their particles, the algorithm's state, what each proposes, and what
    each has paid.

    move: what each search proposes, None before the first step and once the algorithm is done.
    value (B,): what the move is worth, -inf where the search is done. moved (B, n): the particles
    of the last move's rows.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        lookup: Lookup,
        b: int,
        task: Task,
        rewards: int,
        utility: Utility,
    ) -> None:
        self.algorithm = algorithm
        self.lookup = lookup
        self.task = task
        self.b = b
        self.state = algorithm.init(task)
        self.rng = np.random.default_rng(0)
        self.move: Move | None = None
        self.value = np.full(b, -np.inf)
        ints = np.empty((b, 0), int)
        flags = np.empty((b, 0), bool)
        scores = np.empty((b, 0, task.grid.steps + 1, rewards))
        arrays = ints, ints, ints, flags, flags, scores, ints, scores[:, :, 0, 0], flags
        self.particles = Particles(*arrays, Selection(utility), ints, np.zeros(b))
        self.moved = ints
        self.paid = Tally(*(np.zeros(b, int) for _ in Tally._fields))

    def ask(self, searches: IntArray) -> Move | None:
        """The next moves of these searches; the others keep what they proposed. None where the
        algorithm is done."""
        shown = replace(
            self.particles, moved=self.moved, left=self.task.allowance - self.paid.spent(self.task)
        )
        if len(searches) == self.b:
            self.move, self.state = self.algorithm.step(self.state, shown, self.rng)
            if self.move is not None:
                self.value = np.array(np.broadcast_to(self.move.value, self.b), float)
        elif self.move is not None:
            # The algorithm steps on the part of the state that belongs to these searches.
            stacked = [
                isinstance(field, np.ndarray) and field.shape[:1] == (self.b,)
                for field in self.state
            ]
            fields = zip(self.state, stacked, strict=True)
            part: AlgorithmState = type(self.state)(
                *(field[searches] if each else field for field, each in fields)
            )
            move, part = self.algorithm.step(part, shown.of(searches), self.rng)
            if move is None:
                return None
            for whole, some, each in zip(self.state, part, stacked, strict=True):
                if each:
                    whole[searches] = some
            self.value[searches] = move.value
            self.move = Move(_merged(self.move.rows, move.rows, searches), move.look)
        return self.move

    def takes(self, move: Move) -> Tally:
        """What a move takes in each search. No two rows of one have one parent: no lockstep
        algorithm branches."""
        costs = row_costs(move.rows, move.look, self.particles, self.task.grid, 1, self.task.price)
        drafts = costs.get("draft_calls", np.zeros(1, int))
        columns = costs["nfe"], drafts, costs["reward_calls"], costs["decodes"]
        return Tally(*(np.broadcast_to(a.sum(-1), self.b) for a in columns))

    def carry_out(self, searches: IntArray, move: Move, takes: Tally) -> None:
        """Make the move in these k searches, and charge them what it takes."""
        for total, more in zip(self.paid, takes, strict=True):
            total[searches] += more[searches]
        uids = self._place(searches, move)
        # (B, n), or (n,) where they are the same in all searches
        stop = move.rows.stop
        score = move.rows.score
        stop = stop if stop.ndim == 1 else stop[searches]
        score = score if score.ndim == 1 else score[searches]
        self._record(searches, uids, stop, score, move.look)

    def _place(self, searches: IntArray, move: Move) -> IntArray:
        """The particles (k, n) that the rows of a move advance or start; drops those that the move
        gives up."""
        parent = move.rows.parent
        if parent.ndim == 1:
            self._start(len(parent))
            n = len(self.particles)
            parent = np.broadcast_to(np.arange(n - len(parent), n), (self.b, len(parent)))
        uids = parent[searches]
        if self.moved.shape[1] != uids.shape[1]:
            self.moved = np.full((self.b, uids.shape[1]), -1)
        self.moved[searches] = uids
        if move.drop.ndim > 1:
            self.particles.alive.ravel()[self._places(searches, move.drop[searches])] = False
        return uids

    def _places(self, searches: IntArray, uids: IntArray) -> IntArray:
        """Indices of the particles (k, n) of these k searches in a flattened array (B, N)."""
        return uids + len(self.particles) * searches[:, None]

    def _record(
        self, searches: IntArray, uids: IntArray, stop: IntArray, score: BoolArray, look: Estimator
    ) -> None:
        """Put particles (k, n) of these searches at the steps `stop`, and look up the scores of a
        move that scores."""
        p = self.particles
        at = self._places(searches, uids)
        cached = p.cached.ravel()
        evaluated = score & (look.evaluations(stop) > 0)
        cached[at] = (evaluated | (cached[at] & (p.step.ravel()[at] == stop))) & (
            stop < self.task.grid.steps
        )
        p.step.ravel()[at] = stop
        if score.all():
            by_step = np.moveaxis(p.scores, 2, 0).reshape(-1, p.scores.shape[-1])
            by_step[at + p.step.size * stop] = self.lookup(
                searches, uids, np.broadcast_to(stop, uids.shape), look
            )
            p.scored.ravel()[at] = stop
        elif score.any():
            raise ValueError("lockstep moves score all of their rows or none")

    def _start(self, more: int) -> None:
        """Start `more` seeds in every search."""
        p = self.particles
        old = len(self.particles)
        n = len(self.particles) + more
        points, rewards = p.scores.shape[2:]
        # Scores of one step lie side by side, since searches in step ask for those of one step at a
        # time.
        scores = np.moveaxis(np.full((points, self.b, n, rewards), np.nan), 0, 2)
        scores[:, :old] = p.scores
        seed, parent = (np.broadcast_to(a, (self.b, n)) for a in (np.arange(n), -1))
        self.particles = Particles(
            seed,
            parent,
            _widened(p.step, more, 0),
            _widened(p.cached, more, False),
            _widened(p.alive, more, True),
            scores,
            _widened(p.scored, more, -1),
            np.broadcast_to(0.0, (self.b, n)),
            np.broadcast_to(False, (self.b, n)),
            p.selection,
            p.moved,
            p.left,
        )

    def complete(self, chosen: dict[int, int]) -> None:
        """Take one particle of some searches to the end: {search: uid}."""
        if not chosen:
            return
        searches = np.array(list(chosen))
        uid = np.zeros((self.b, 1), int)
        uid[searches, 0] = list(chosen.values())
        at = take(self.particles.step, uid)
        one = np.ones((self.b, 1))
        end = np.full((self.b, 1), self.task.grid.steps)
        move = Move(Rows(at * 0 + Kind.CONTINUE, uid, at, end, one.astype(bool), one))
        self.carry_out(searches, move, self.takes(move))

    def outcomes(self) -> Outcomes:
        """The best finished image of each search, and what was paid."""
        done = self.particles.finished
        searches = np.arange(self.b)
        final = self.particles.scores[:, :, -1]
        if np.ptp(done.sum(1)) == 0:  # all searches finished as many images
            uids = np.flatnonzero(done).reshape(self.b, -1) % len(self.particles)
            value = self.particles.selection.values(final[searches[:, None], uids])
        else:
            uids = np.broadcast_to(np.arange(done.shape[1]), done.shape)
            value = np.full(done.shape, -np.inf)
            value[done] = self.particles.selection.values(final[done][:, None])[:, 0]
        best = value.argmax(1)
        return Outcomes(uids[searches, best], value[searches, best], self.paid)


def _merged(old: Rows, new: Rows, searches: IntArray) -> Rows:
    """The rows (B, n) of all searches: `new` (k, n) of these k searches, `old` of the others."""
    columns: list[Any] = [np.array(np.broadcast_to(column, old.parent.shape)) for column in old]
    for column, part in zip(columns, new, strict=True):
        column[searches] = part
    return Rows(*columns)


def _widened(array: NDArray[_Kind], more: int, fill: int) -> NDArray[_Kind]:
    """The array (B, N) with columns for `more` particles in each search, filled with `fill`."""
    return np.concatenate([array, np.full((len(array), more), fill, array.dtype)], 1)
