"""A move resolved once: what each row is, which particle it makes or takes on, and what it costs.

Everything after the algorithm reads the plan: the ledger, the table of particles, engines, replay and refunds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.looks import Estimator
from ttsnap.core.moves import ASCEND, BRANCH, CONTINUE, FRESH, MIX, NEAR, Move, Rows
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.price import PLAIN, Price
from ttsnap.core.pricing import RowCosts, first_ones, goes_on, row_costs, total


@dataclass(frozen=True)
class Plan:
    """Rows (n,) of a move with everything that follows from them.

    rows: `kind` tells children that BRANCH from the row that CONTINUEs a particle, and `parent` is the particle whose
    state a row starts from. uid (n,): the particle that the row takes on or makes; seed (n,) uint64 of its initial
    noise. near (n,): of a row of kind NEAR, the sibling whose step noise it is near, else -1. paid (n,): whether the
    evaluation at `start` was paid before this move. costs: what each row takes. look, drop, reject: as in Move.
    """

    rows: Rows
    uid: IntArray
    seed: IntArray
    near: IntArray
    paid: BoolArray
    costs: RowCosts
    look: Estimator
    drop: IntArray
    reject: IntArray

    def __len__(self) -> int:
        return len(self.uid)

    @cached_property
    def cost(self) -> Cost:
        """Of all rows together."""
        return total(self.costs)

    def cached(self, grid: Grid) -> BoolArray:
        """(n,) whether the evaluation at `stop` is paid once the rows are carried out."""
        rows = self.rows
        # An evaluation that is paid stays so where a particle, or a child of it, waits.
        evaluated = self.look.evaluations(rows.stop, grid) > 0
        mask: BoolArray = (rows.score & evaluated) | (self.paid & (rows.stop == rows.start))
        return mask & (rows.stop < grid.steps)

    def head(self, n: int) -> Plan:
        """The first n rows: what a row is, and costs, does not depend on later ones."""
        return self.take(slice(n))

    def take(self, rows: IntArray | slice) -> Plan:
        """Some of the rows, with what each is and costs in the whole plan."""
        columns = self.uid[rows], self.seed[rows], self.near[rows], self.paid[rows]
        costs = _some(self.costs, rows)
        return Plan(self.rows.take(rows), *columns, costs, self.look, self.drop, self.reject)


def resolve(move: Move, particles: Particles, grid: Grid, rewards: int, price: Price = PLAIN, seed: int = 0) -> Plan:
    """The plan of a valid move (validate.py). Fresh seeds count up from `seed`; those of torch, uint64, wrap around."""
    asked, now = move.rows, len(particles)
    kind, parent, near = asked.kind, asked.parent, np.full(len(move), -1)
    if np.count_nonzero(siblings := kind == NEAR):
        near = np.where(siblings, parent, -1)
        parent = np.where(siblings, particles.parent[parent], parent)
    (same,) = (kind == CONTINUE).nonzero()
    if len(set(parent[same].tolist())) < len(same):
        kind = kind.copy()
        kind[same[~first_ones(parent[same], now)]] = BRANCH
    rows = Rows(kind, parent, asked.start, asked.stop, asked.score, asked.share)
    new, fresh = kind != CONTINUE, kind == FRESH
    uid = np.where(new, now - 1 + new.cumsum(), parent)
    seeds = np.uint64(seed) + (particles.seeds - 1 + fresh.cumsum()).astype(np.uint64)
    paid = goes_on(rows)
    if now:
        seeds = np.where(fresh, seeds, particles.seed[parent])
        paid &= particles.cached[parent]
    costs = row_costs(rows, move.look, particles, grid, rewards, price)
    return Plan(rows, uid, seeds, near, paid, costs, move.look, move.drop, move.reject)


def _some(costs: RowCosts, rows: IntArray | slice) -> RowCosts:
    """Of some rows."""
    return {kind: column[rows] for kind, column in costs.items()}


def owned_gradients(plan: Plan, particles: Particles, guided: BoolArray) -> BoolArray:
    """(n,) rows that stay at a guided step and have its gradient afterwards: it was paid before, or by this plan.

    guided: (K+1,) whether a reward's gradient guides the step on from there. A row that stays comes to have the
    gradient because a sibling that moves on pays for it: all children of one particle share it.
    """
    rows, here = plan.rows, goes_on(plan.rows)
    stays, goes = here & (rows.stop == rows.start), here & (rows.stop > rows.start) & guided[rows.start]
    if not stays.any():
        return np.zeros(len(plan), bool)
    parent = np.where(here, rows.parent, 0)
    shared = np.isin(rows.parent, rows.parent[goes]) & (plan.paid | rows.score)
    mask: BoolArray = stays & (particles.has_gradient[parent] | shared)
    return mask


def unspent(plan: Plan, cancelled: Outcome, particles: Particles, grid: Grid, rewards: int, price: Price) -> Cost:
    """The part of a plan's cost that was not spent where rows of it were cancelled.

    particles: as they are now, how far the cancelled rows got being recorded.
    """
    row_of = {uid: i for i, uid in enumerate(plan.uid.tolist())}
    at = np.array([row_of[uid] for uid in cancelled.uids.tolist()], int)
    ran = (cancelled.cached & ~plan.paid[at]) | (cancelled.step > plan.rows.start[at])
    whole, part = at[~ran], at[ran]
    # Gradients of finished images are the first thing that an engine does, so that they are spent.
    ascents = whole[plan.rows.kind[whole] == ASCEND]
    cost = total(_some(plan.costs, np.setdiff1d(whole, ascents)))
    mixed = plan.rows.take(ascents)._replace(kind=np.full(len(ascents), MIX, int))
    rest = plan.rows.take(part)._replace(kind=np.full(len(part), CONTINUE, int), parent=cancelled.uids[ran],
                                         start=cancelled.step[ran])  # fmt: skip
    for rows in (mixed, rest):
        cost += total(row_costs(rows, plan.look, particles, grid, rewards, price))
    return cost - cancelled.look_cost
