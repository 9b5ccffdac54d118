"""What searches in lockstep pay, and pots: budgets that groups of them share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import Move
from ttsnap.core.particles import Particles


class Tally(NamedTuple):
    """What each of B searches pays, by kind."""

    nfe: IntArray
    """(B,) evaluations of the denoiser."""
    drafts: IntArray
    """(B,) calls of the drafter."""
    scored: IntArray
    """(B,) scored images."""
    finals: IntArray
    """(B,) those of the scored images that were finished."""

    def spent(self, task: Task) -> FloatArray:
        """(B,) the whole, in evaluations."""
        counts = {
            "nfe": self.nfe,
            "draft_calls": self.drafts,
            "reward_calls": self.scored,
            "decodes": self.finals,
        }
        return task.spent(counts)


class Served(NamedTuple):
    """One round of all pots."""

    go: BoolArray
    """(B,) searches that carry out their move."""
    refused: BoolArray
    """(B,) searches whose move is the most valuable of their pot, and which the pot cannot pay."""
    last: dict[int, int]
    """Of the refused searches without an image, {search: the particle to finish from what was held
    back}."""


class SharedBudget:
    """Pots of `size` allowances, each shared by a group of `size` neighbouring searches.

    held (B,): evaluations that each search is sure of: enough to finish its nearest particle, 0
    once it has an image or only a decode is left. Arrays (G, size) are by pot. ValueError where the
    searches make no whole number of pots.
    """

    def __init__(self, searches: int, size: int, task: Task) -> None:
        if searches % size or not np.isfinite(task.allowance):
            raise ValueError(
                f"{searches} searches do not make pots of {size}, or the task has no allowance"
            )
        self.size = size
        self.task = task
        self.total = size * task.allowance * (1 + 1e-12)
        self.whole = task.grid.nfe + task.score_cost
        self.held = np.full(searches, float(self.whole))

    def serve(
        self, particles: Particles, move: Move, value: FloatArray, takes: Tally, paid: Tally
    ) -> Served:
        """Serve the most valuable moves of each pot: all that are worth the same, or as many as the
        pot pays for.

        value (B,): what each search's move is worth, -inf for none. takes: what the moves would
        take; paid: so far.
        """
        after = self._held_after(move)
        if move.rows.parent.ndim == 1:  # starting seeds: the first move of all
            self.held = after
            return Served(np.ones(len(value), bool), np.zeros(len(value), bool), {})
        if (n := move.rows.parent.shape[1]) != 1:
            raise ValueError(f"searches that share a pot advance one candidate at a time, got {n}")
        by_pot = -1, self.size
        worth = value.reshape(by_pot)
        held = self.held.reshape(by_pot)
        after = after.reshape(by_pot)
        cost = takes.spent(self.task).reshape(by_pot)
        spent = paid.spent(self.task).reshape(by_pot).sum(1)
        wants = (worth == worth.max(1, keepdims=True)) & (worth > -np.inf)
        fits = spent + np.where(wants, cost + after, held).sum(1) <= self.total
        go = wants & fits[:, None]
        last = dict[int, int]()
        for pot in np.flatnonzero(~fits).tolist():  # one search after the other
            reserve = held[pot].sum()
            used = spent[pot]
            for member in np.flatnonzero(wants[pot]).tolist():
                search = pot * self.size + member
                others = reserve - held[pot, member]
                if used + cost[pot, member] + others + after[pot, member] <= self.total:
                    go[pot, member] = True
                    used = used + cost[pot, member]
                    reserve = others + after[pot, member]
                elif not particles.finished[
                    search
                ].any():  # held says less: 0 also where only a decode is left
                    last[search], rest = self._affordable(
                        particles.of(search), self.total - used - others
                    )
                    used = used + rest
                    reserve = others
        self.held = np.where(go, after, held).ravel()
        self.held[list(last)] = 0.0
        return Served(go.ravel(), (wants & ~go).ravel(), last)

    def _affordable(self, particles: Particles, left: float) -> tuple[int, float]:
        """The best particle of one search that `left` can finish, and what that takes."""
        rest = self.whole - (self.task.grid.calls[particles.step] + particles.cached)
        value = particles.value(np.arange(len(particles)))
        order = np.lexsort((-particles.step, -value))
        uid = int(order[np.argmax(rest[order] <= left)])
        return uid, float(rest[uid])

    def _held_after(self, move: Move) -> FloatArray:
        """(B,) what must be held back once a move is made: what finishing the nearest particle
        takes, until one is."""
        rows = move.rows
        grid = self.task.grid
        ahead = rows.score & (rows.stop < grid.steps)
        paid = ahead & (move.look.evaluations(rows.stop) > 0)
        nearest = (grid.calls[rows.stop] + paid).max(-1)
        done = (rows.score & (rows.stop == grid.steps)).any(-1)
        after: FloatArray = np.where(done, 0.0, np.minimum(self.held, self.whole - nearest))
        return after
