"""Thousands of searches at once over recorded scores, with the algorithm objects that run live.

Every array has a leading axis of B searches. Moves must have the same shape in all of them: one shape for all
searches of a schedule, or the one row that a priced policy advances (`Move.value` (B,) says which searches go on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ttsnap.core import utility as utilities
from ttsnap.core.arrays import BoolArray, FloatArray, IntArray, take
from ttsnap.core.grid import Task
from ttsnap.core.moves import Kind, Move, Rows
from ttsnap.core.particles import Particles, Utility
from ttsnap.core.protocols import Algorithm
from ttsnap.core.validate import check_idle

_Kind = TypeVar("_Kind", bound=np.generic)
Lookup = Callable[[IntArray, IntArray, IntArray], FloatArray]
"""searches (b,), (b, n) rows of their candidates, (b, n) steps -> scores (b, n, R)."""


@dataclass(frozen=True)
class Outcomes:
    """Of B searches: the winner's row (B,) and utility (B,); evaluations (B,), scored images (B,) and those of them
    that were finished (B,), all paid for."""

    winner: IntArray
    reward: FloatArray
    nfe: IntArray
    scored: IntArray
    finals: IntArray

    def spent(self, task: Task) -> FloatArray:
        """(B,) what each search paid, in evaluations."""
        return _paid(task, self.nfe, self.scored, self.finals)


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
    """Run `searches` searches in step, as `search` would one by one (tested).

    pot: that many neighbouring searches share `pot * task.allowance` evaluations, the most valuable moves first, and
    each is sure of one image; their moves have one row. None: every search is on its own, and the algorithm (with n
    set) keeps to its allowance. Raises ValueError where the algorithm cannot run in lockstep, RuntimeError where it
    keeps making moves that cost nothing.
    """
    if not algorithm.lockstep or algorithm.n is None:
        raise ValueError(f"{algorithm} cannot run in lockstep: it must be a lockstep algorithm with n set")
    run = _Run(algorithm, lookup, searches, task, rewards, utility)
    everyone = np.arange(searches)
    purse = _Pots(searches, pot, task) if pot is not None else None
    asking, active = everyone, np.ones(searches, bool)
    value, wants, idle = np.full(searches, -np.inf), None, 0
    while True:
        wants, value = run.ask(asking, wants, value)
        active &= value > -np.inf
        if wants is None or not active.any():
            break
        go = active
        if purse is not None:
            go, refused, last = purse.serve(run, wants, np.where(active, value, -np.inf))
            active &= ~refused
            run.finish(last)
        asking, paid = np.flatnonzero(go), run.nfe.sum() + run.scored.sum()
        run.carry_out(asking, wants)
        idle = idle + 1 if run.nfe.sum() + run.scored.sum() == paid else 0
        check_idle(idle, algorithm)
    return run.outcomes()


class _Run:
    """The stacked particles of all searches and the algorithm's state."""

    def __init__(
        self, algorithm: Algorithm, lookup: Lookup, b: int, task: Task, rewards: int, utility: Utility
    ) -> None:
        self.algorithm, self.lookup, self.task, self.b = algorithm, lookup, task, b
        ints, flags = np.empty((b, 0), int), np.empty((b, 0), bool)
        scores = np.empty((b, 0, task.grid.steps + 1, rewards))
        self.moved = ints
        arrays = ints, ints, ints, flags, flags, scores, ints, scores[:, :, 0, 0], flags
        self.particles = Particles(*arrays, utility, ints, np.zeros(b))
        self.state = algorithm.init(task)
        self.nfe, self.scored, self.finals = np.zeros(b, int), np.zeros(b, int), np.zeros(b, int)
        self.nearest, self.finished = np.zeros(b, int), np.zeros(b, bool)  # evaluations of the nearest to an image
        self.rng = np.random.default_rng(0)

    def ask(self, rows: IntArray, wants: Move | None, value: FloatArray) -> tuple[Move | None, FloatArray]:
        """Ask the searches `rows` for their next moves; others keep their proposal."""
        left = self.task.allowance - _paid(self.task, self.nfe, self.scored, self.finals)
        told = replace(self.particles, moved=self.moved, left=left)
        if len(rows) == self.b:
            move, self.state = self.algorithm.step(self.state, told, self.rng)
            if move is None:
                return None, value
            return move, np.broadcast_to(np.asarray(move.value, float), (self.b,)).copy()
        some = _pick(told, rows)
        move, state = self.algorithm.step(_pick(self.state, rows, self.b), some, self.rng)
        if move is None or wants is None:
            return None, value
        _store(self.state, state, rows, self.b)
        value = value.copy()
        value[rows] = move.value
        return Move(_merged(wants.rows, move.rows, rows)), value

    def costs(self, move: Move) -> tuple[IntArray, IntArray, IntArray]:
        """Evaluations, scored images and finished ones of them (B,) of a move, as price_move counts them."""
        rows, grid = move.rows, self.task.grid
        ahead = rows.score & (rows.stop < grid.steps)
        calls = grid.calls[rows.stop] - grid.calls[rows.start]
        if ahead.any():
            calls = calls + ahead * move.look.evaluations(rows.stop, grid)
        if rows.parent.ndim > 1:
            calls = calls - (take(self.particles.cached, rows.parent) & (calls > 0))
        counts = (np.broadcast_to(a.sum(-1), self.b) for a in (calls, rows.score, rows.score & ~ahead))
        calls, scored, finals = counts
        return calls, scored, finals

    def carry_out(self, rows: IntArray, move: Move) -> None:
        """Make the move in these searches: append fresh seeds, advance the others, drop, look scores up."""
        for total, more in zip((self.nfe, self.scored, self.finals), self.costs(move), strict=True):
            total[rows] += more[rows]
        if move.rows.parent.ndim == 1:
            self._grow(len(move))
        p = self.particles
        parent = move.rows.parent
        uids = parent[rows] if parent.ndim > 1 else np.arange(len(p) - len(move), len(p))[None]
        uids = np.broadcast_to(uids, (len(rows), uids.shape[1]))
        if self.moved.shape[1] != uids.shape[1]:
            self.moved = np.full((self.b, uids.shape[1]), -1)
        self.moved[rows] = uids
        stop, score = (a if a.ndim == 1 else a[rows] for a in (move.rows.stop, move.rows.score))
        ahead = score & (stop < self.task.grid.steps)
        at = uids + len(p) * rows[:, None]
        p.step.ravel()[at] = stop
        p.cached.ravel()[at] = ahead
        self.nearest[rows] = np.maximum(self.nearest[rows], (self.task.grid.calls[stop] + ahead).max(-1))
        self.finished[rows] |= (score & (stop == self.task.grid.steps)).any(-1)
        if move.drop.ndim > 1:
            p.alive.ravel()[move.drop[rows] + len(p) * rows[:, None]] = False
        if score.all():
            planes = np.moveaxis(p.scores, 2, 0).reshape(-1, p.scores.shape[-1])
            planes[at + p.step.size * stop] = self.lookup(rows, uids, np.broadcast_to(stop, uids.shape))
            p.scored.ravel()[at] = stop
        elif score.any():
            raise ValueError("lockstep moves score all of their rows or none")

    def _grow(self, more: int) -> None:
        p, old, n = self.particles, len(self.particles), len(self.particles) + more

        def grow(array: Any, fill: Any) -> Any:
            grown = np.full((self.b, n), fill, array.dtype)
            grown[:, :old] = array
            return grown

        points, rewards = p.scores.shape[2:]
        scores = np.moveaxis(np.full((points, self.b, n, rewards), np.nan), 0, 2)  # those of a step side by side
        scores[:, :old] = p.scores
        seed, parent = (np.broadcast_to(a, (self.b, n)) for a in (np.arange(n), -1))
        self.particles = Particles(
            seed, parent, grow(p.step, 0), grow(p.cached, False), grow(p.alive, True), scores, grow(p.scored, -1),
            np.broadcast_to(0.0, (self.b, n)), np.broadcast_to(False, (self.b, n)), p.utility, p.moved, p.left,
        )  # fmt: skip

    def finish(self, chosen: dict[int, int]) -> None:
        """Take one particle of some searches to the end: {search: uid}."""
        if not chosen:
            return
        p, rows = self.particles, np.array(list(chosen))
        whole = np.zeros((self.b, 1), int)
        whole[rows, 0] = list(chosen.values())
        at, one = np.take_along_axis(p.step, whole, 1), np.ones((self.b, 1))
        end = np.full((self.b, 1), self.task.grid.steps)
        self.carry_out(rows, Move(Rows(at * 0 + Kind.CONTINUE, whole, at, end, one.astype(bool), one)))

    def outcomes(self) -> Outcomes:
        done, searches = self.particles.finished, np.arange(self.b)
        final = self.particles.scores[:, :, -1]
        if np.ptp(done.sum(1)) == 0:
            uids = np.flatnonzero(done).reshape(self.b, -1) % len(self.particles)
            value = self.particles.utility(final[searches[:, None], uids])
        else:
            uids, value = np.broadcast_to(np.arange(done.shape[1]), done.shape), np.full(done.shape, -np.inf)
            value[done] = self.particles.utility(final[done][:, None])[:, 0]
        best = value.argmax(1)
        winner, reward = uids[searches, best], value[searches, best]
        return Outcomes(winner, reward, self.nfe, self.scored, self.finals)


class _Pots:
    """Budgets that groups of searches share; an image each is held back until it has one."""

    def __init__(self, searches: int, size: int, task: Task) -> None:
        if searches % size or not np.isfinite(task.allowance):
            raise ValueError(f"{searches} searches do not make pots of {size}, or the task has no allowance")
        self.size, self.task = size, task
        self.total = size * task.allowance * (1 + 1e-12)

    def serve(self, run: _Run, move: Move, value: FloatArray) -> tuple[BoolArray, BoolArray, dict[int, int]]:
        """Which searches carry out their move, those worth most in each pot; which asked in vain; and of those that
        have no image yet, the particle to finish from what was held back, {search: uid}."""
        last: dict[int, int] = {}
        if move.rows.parent.ndim == 1:  # starting seeds: the first move of all
            return np.ones(run.b, bool), np.zeros(run.b, bool), last
        if move.rows.parent.shape[1] != 1:
            n = move.rows.parent.shape[1]
            raise ValueError(f"searches that share a pot advance one candidate at a time, got {n}")
        worth = value.reshape(-1, self.size)
        first = (worth == worth.max(1, keepdims=True)) & (worth > -np.inf)
        calls, scored, finals = run.costs(move)
        cost = _paid(self.task, calls, scored, finals).reshape(worth.shape)
        spent = _paid(self.task, run.nfe, run.scored, run.finals).reshape(worth.shape).sum(1)
        held, after = (a.reshape(worth.shape) for a in self._reserves(run, move, calls))
        fits = spent + (np.where(first, cost + after, held)).sum(1) <= self.total
        go = first & fits[:, None]
        for g in np.flatnonzero(~fits).tolist():  # nearly empty: one after the other
            reserve, paid = held[g].sum(), spent[g]
            for m in np.flatnonzero(first[g]).tolist():
                others = reserve - held[g, m]
                if paid + cost[g, m] + others + after[g, m] <= self.total:
                    go[g, m] = True
                    paid, reserve = paid + cost[g, m], others + after[g, m]
                elif held[g, m] > 0:
                    uid, rest = self._affordable(run.particles.of(g * self.size + m), self.total - paid - others)
                    last[g * self.size + m] = uid
                    paid, reserve = paid + rest, others
        return go.ravel(), (first & ~go).ravel(), last

    def _affordable(self, particles: Particles, left: float) -> tuple[int, float]:
        """The best particle that `left` can finish, and what that takes."""
        grid = self.task.grid
        rest = grid.nfe + self.task.score_cost - (grid.calls[particles.step] + particles.cached)
        value = particles.value(np.arange(len(particles)))
        order = np.lexsort((-particles.step, -value))
        uid = int(order[np.argmax(rest[order] <= left)])
        return uid, float(rest[uid])

    def _reserves(self, run: _Run, move: Move, calls: IntArray) -> tuple[FloatArray, FloatArray]:
        """What finishing the nearest particle takes, before and after the move, (B,); 0 once one is finished."""
        p, grid = run.particles, self.task.grid
        whole = grid.nfe + self.task.score_cost
        held = np.where(run.finished, 0.0, whole - run.nearest)
        step, cached = (np.take_along_axis(a, move.rows.parent, 1) for a in (p.step, p.cached))
        at = (grid.calls[step] + cached).sum(1) + calls
        ends = (move.rows.stop >= grid.steps).any(-1)
        return held, np.where(ends, 0.0, np.where(held == 0, 0.0, whole - np.maximum(run.nearest, at)))


def _paid(task: Task, calls: IntArray, scored: IntArray, finals: IntArray) -> FloatArray:
    total: FloatArray = calls + task.checking * (scored - finals) + task.score_cost * finals
    return total


def _pick(stack: Any, rows: IntArray, b: int | None = None) -> Any:
    """The same named tuple or particles, of some searches; fields without the leading axis stay."""
    if isinstance(stack, Particles):
        return stack.of(rows)
    return type(stack)(*(f[rows] if _stacked(f, b) else f for f in stack))


def _store(stack: Any, part: Any, rows: IntArray, b: int) -> None:
    for whole, f in zip(stack, part, strict=True):
        if _stacked(whole, b):
            whole[rows] = f


def _merged(old: Rows, new: Rows, searches: IntArray) -> Rows:
    """The rows of all searches: new ones of these searches, old ones of the others."""

    def merged(old: NDArray[_Kind], new: NDArray[_Kind]) -> NDArray[_Kind]:
        column = np.array(np.broadcast_to(old, shape))
        column[searches] = new
        return column

    shape = old.parent.shape
    return Rows(merged(old.kind, new.kind), merged(old.parent, new.parent), merged(old.start, new.start),
                merged(old.stop, new.stop), merged(old.score, new.score), merged(old.share, new.share))  # fmt: skip


def _stacked(field: Any, b: int | None) -> bool:
    return isinstance(field, np.ndarray) and field.ndim > 0 and field.shape[0] == b
