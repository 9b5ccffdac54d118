"""A search that takes wishes while it runs: drop this candidate, finish that one, stop and finish
the best few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import CONTINUE, FRESH, NEAR, Move, advance, fresh
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.core.protocols import Algorithm, AlgorithmState

ROWS, STRIDE = 16, 5
"""A wish waits for no more than so many candidates to come so many steps further."""
DROP, FINISH, BEST = "drop", "finish", "best"


class UserCommand(NamedTuple):
    """What a person wants of a search."""

    verb: str
    """DROP or FINISH a candidate, or finish the BEST few and end."""
    uid: int = -1
    seed: int = -1
    """The initial seed of the candidate that is meant, where `uid` is -1."""
    number: int = 0
    """How many best candidates to finish."""

    def meant(self, particles: Particles) -> int:
        """The uid of the living, unfinished candidate that is meant; -1 where there is none."""
        open_ = particles.alive & ~particles.finished
        if self.uid >= 0:
            return self.uid if self.uid < len(particles) and open_[self.uid] else -1
        found = np.flatnonzero(open_ & (particles.parent < 0) & (particles.seed == self.seed))
        return int(found[0]) if len(found) else -1


class ByHandState(NamedTuple):
    """What the search remembers between moves."""

    inner: AlgorithmState
    """The algorithm's own."""
    n: int | None = None
    """Seeds of the algorithm."""
    move: Move | None = None
    """The algorithm's move that is being carried out."""
    uids: IntArray = np.empty(0, int)
    """(n,) who the rows of `move` became; -1: not begun, or cut off."""
    todo: tuple[int, ...] = ()
    """Rows of `move` that are not where they should be."""
    sent: tuple[int, ...] = ()
    """Rows of the last piece; -1: a row of a wish."""
    turn: int = 0
    """Moves made."""
    read: int = 0
    """Wishes read."""
    taken: tuple[tuple[int, UserCommand], ...] = ()
    """Wishes that were carried out, each with its turn."""
    drops: tuple[int, ...] = ()
    """Uids to be given up with the next move."""
    left: int | None = None
    """Images to finish before the end; None while the algorithm goes on."""


@dataclass(frozen=True)
class ByHand:
    """Carries out the moves of `algorithm`, in pieces of few candidates and steps, and between
    pieces what was wished.

    Without wishes it spends and finds what the algorithm alone does. Wishes are moves like any
    other: the ledger charges them, and a search whose candidates were all dropped still finishes an
    image, from its reserve."""

    algorithm: Algorithm
    n: int | None = None
    wishes: Callable[[], Sequence[UserCommand]] = field(default=tuple, compare=False)
    """Called before each move; gives every wish so far, in order."""
    script: tuple[tuple[int, UserCommand], ...] = ()
    """Wishes by the turn at which they were taken (`ByHandState.taken` of a search, which its trace
    notes). The same search with this script makes the same moves again."""
    rows: int = ROWS
    """The most candidates of a piece."""
    lockstep: ClassVar[bool] = False

    @property
    def needs(self) -> Needs:
        return self.algorithm.needs

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", self.algorithm.n if self.n is None else self.n)

    @property
    def _sized(self) -> Any:
        """The algorithm with as many seeds as were fitted for this one."""
        inner: Any = self.algorithm
        return inner if self.n == inner.n else replace(inner, n=self.n)

    def init(self, task: Task) -> ByHandState:
        return ByHandState(self._sized.init(task), self.n)

    def step(
        self, state: ByHandState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, ByHandState]:
        """The next piece, what was wished, or the algorithm's next move."""
        end = particles.scores.shape[-2] - 1
        state = self._hear(self._settle(state, particles), particles)
        if state.left is not None:
            best = [int(uid) for uid in particles.ranked() if uid not in state.drops][: state.left]
            rows = [uid for uid in best if not particles.finished[uid]]
            return self._wished(state._replace(left=0), particles, rows, end)
        wanted = [
            wish.meant(particles)
            for turn, wish in state.taken
            if turn == state.turn and wish.verb == FINISH
        ]
        if rows := [uid for uid in dict.fromkeys(wanted) if uid >= 0 and uid not in state.drops]:
            return self._wished(state, particles, rows, end)
        # an algorithm that wants only what was dropped is called again, and then ended
        for _ in range(10):
            if state.todo:
                return self._piece(state, particles)
            seen = particles.after_move(state.uids, float(particles.left))
            move, inner = self._sized.step(state.inner, seen, rng)
            if move is None:
                return self._end(state._replace(inner=inner), particles, end)
            state = self._begun(state._replace(inner=inner), move, particles)
        return self._end(state, particles, end)

    def _end(
        self, state: ByHandState, particles: Particles, end: int
    ) -> tuple[Move | None, ByHandState]:
        """Nothing more; but a fresh seed where the loop, which wants one image, would finish who is
        to be dropped."""
        drops = np.array([uid for uid in state.drops if particles.alive[uid]], int)
        if not len(drops) or particles.finished.any():
            return None, state
        return replace(fresh(1, end), drop=drops), state._replace(
            sent=(-1,), turn=state.turn + 1, drops=()
        )

    def _settle(self, state: ByHandState, particles: Particles) -> ByHandState:
        """Note how far the last piece came. What the budget cut off ends the algorithm's move, as
        it would alone."""
        uids, stops = state.uids.copy(), () if state.move is None else state.move.rows.stop
        cut = False
        for row, uid in zip(state.sent, particles.moved.tolist(), strict=False):
            cut |= row >= 0 and uid < 0
            if row >= 0 and uid >= 0:
                uids[row] = uid
        arrived = {
            row for row in state.todo if uids[row] >= 0 and particles.step[uids[row]] >= stops[row]
        }
        todo = () if cut else tuple(row for row in state.todo if row not in arrived)
        for row in state.todo if cut else ():
            uids[row] = uids[row] if row in arrived else -1
        return state._replace(uids=uids, todo=todo, sent=())

    def _hear(self, state: ByHandState, particles: Particles) -> ByHandState:
        """Take the wishes that are due: note them, forget the rows of who is dropped or finished
        instead."""
        said = tuple(self.wishes())[state.read :]
        due = [*(wish for turn, wish in self.script if turn == state.turn), *said]
        state = state._replace(read=state.read + len(said))
        for wish in due:
            uid = wish.meant(particles)
            if wish.verb == BEST:
                state = state._replace(left=max(1, wish.number))
            elif uid < 0:
                continue  # finished, dropped or unknown
            else:
                drops = (*state.drops, uid) if wish.verb == DROP else state.drops
                state = self._without(state, uid, -1 if wish.verb == DROP else uid)
                state = state._replace(drops=tuple(dict.fromkeys(drops)))
            state = state._replace(taken=(*state.taken, (state.turn, wish)))
        return state

    def _without(self, state: ByHandState, uid: int, instead: int) -> ByHandState:
        """The algorithm's move without the rows of a candidate, which become `instead` for the
        algorithm."""
        if state.move is None:
            return state
        parents, uids = state.move.rows.parent, state.uids.copy()
        mine = {row for row in state.todo if uid in (uids[row], parents[row])}
        for row in mine:
            uids[row] = instead
        return state._replace(uids=uids, todo=tuple(row for row in state.todo if row not in mine))

    def _wished(
        self, state: ByHandState, particles: Particles, rows: Sequence[int], end: int
    ) -> tuple[Move | None, ByHandState]:
        """Finish these candidates at once."""
        if not rows:
            return None, state
        drops = [uid for uid in state.drops if particles.alive[uid]]
        move = advance(particles, rows, end, drop=drops)
        return move, state._replace(sent=(-1,) * len(rows), turn=state.turn + 1, drops=())

    def _begun(self, state: ByHandState, move: Move, particles: Particles) -> ByHandState:
        """A move of the algorithm, without the rows that start from who is gone or done."""
        rows = move.rows
        gone = ~particles.alive.copy()
        gone[list(state.drops)] = True
        # of a row that was dropped
        lost = _of(gone, rows.parent) | ((rows.kind != FRESH) & (rows.parent < 0))
        near = (rows.kind == NEAR) & ~lost
        lost[near] |= _of(gone, particles.parent[rows.parent[near]])
        # by hand: it is further than is wanted
        done = (rows.kind == CONTINUE) & _of(particles.finished, rows.parent)
        first = np.zeros(len(rows.parent), bool)
        first[np.unique(rows.parent, return_index=True)[1]] = True
        uids = np.where(done & first, rows.parent, -1)
        drops = tuple(dict.fromkeys([*state.drops, *move.drop.tolist()]))
        todo = tuple(np.flatnonzero(~lost & ~done).tolist())
        return state._replace(move=move, uids=uids, todo=todo, drops=drops)

    def _piece(self, state: ByHandState, particles: Particles) -> tuple[Move, ByHandState]:
        """The first rows of the algorithm's move that are not done, a few steps further.

        Where some of them branch, or start from others, all of them go to their ends.
        """
        move = state.move
        assert move is not None
        rows = move.rows
        parents = rows.parent[rows.parent >= 0]
        plain = bool(np.isin(rows.kind, (FRESH, CONTINUE)).all()) and len(
            np.unique(parents)
        ) == len(parents)
        sent = state.todo[: self.rows] if plain else state.todo
        piece = rows.take(np.array(sent))
        if plain:
            begun = state.uids[list(sent)]
            going = begun >= 0
            start = piece.start.copy()
            start[going] = particles.step[begun[going]]
            # Near the end of the budget rows go to their ends, so that it cuts off whole ones, as
            # it would alone.
            need = 2 * int((piece.stop - start + 1).sum()) + particles.scores.shape[-2]
            stop = np.minimum(piece.stop, start + STRIDE) if particles.left >= need else piece.stop
            piece = piece._replace(
                kind=np.where(going, CONTINUE, piece.kind),
                parent=np.where(going, begun, piece.parent),
                start=start,
                stop=stop,
                score=piece.score & (stop == piece.stop),
            )
        drops = np.array([uid for uid in state.drops if particles.alive[uid]], int)
        made = Move(piece, move.look, drops, move.reject, move.value)
        return made, state._replace(sent=sent, turn=state.turn + 1, drops=())


def _of(marks: BoolArray, uids: IntArray) -> BoolArray:
    """Whether each of these particles is marked; False for -1."""
    found = np.zeros(len(uids), bool)
    found[uids >= 0] = marks[uids[uids >= 0]]
    return found
