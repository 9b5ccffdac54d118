"""A move resolved once: what each row is, which particle it makes or takes on, and what it costs.

Everything after the algorithm reads the plan: the ledger, the table of particles, engines, replay
and refunds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray, take
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid, Task
from ttsnap.core.looks import Estimator, InTurn
from ttsnap.core.moves import ASCEND, BRANCH, CONTINUE, FRESH, MIX, NEAR, Move, Rows
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.price import PLAIN, GuidedSteps, Price
from ttsnap.core.start import Start

RowCosts = dict[str, IntArray]
"""By kind of cost, what each row takes (n,). Kinds that none of them takes may be missing."""


def total(costs: RowCosts) -> Cost:
    """The cost of all rows together."""
    return Cost(**{kind: int(np.add.reduce(column)) for kind, column in costs.items()})


def goes_on(rows: Rows) -> BoolArray:
    """(n,) rows that go on from the step where their parent is, and share its evaluation there:
    CONTINUE to NEAR."""
    mask: BoolArray = (rows.kind > FRESH) & (rows.kind <= NEAR)
    return mask


def from_noise(rows: Rows) -> BoolArray:
    """(n,) rows that make a new particle from noise: FRESH, MIX and ASCEND."""
    mask: BoolArray = (rows.kind == FRESH) | (rows.kind >= MIX)
    return mask


def draft_calls(rows: Rows, look: Estimator, steps: int, start: Start) -> IntArray:
    """Calls (n,) of the drafter that looks at these rows take on a grid of so many steps.

    A draft at step 0 of as many calls as particles begin by is what they begin from, and free.
    """
    calls: IntArray = (rows.score & (rows.stop < steps)) * look.draft_calls(rows.stop)
    if (begun := start.alone.draft_calls) == 0:
        return calls
    return np.where((rows.stop == 0) & (calls == begun), 0, calls)


def begin_costs(rows: Rows, particles: Particles, start: Start) -> RowCosts:
    """What each of these rows (n,) takes to begin; nothing where none does, as of those in lockstep
    that go on."""
    made = from_noise(rows)
    if start.plain or not np.count_nonzero(made):
        return {}
    fresh = rows.kind == FRESH
    (index,) = fresh.nonzero()
    pays = (particles.seeds + np.arange(len(index))) % start.size == 0
    if particles.owing:
        pays[:1] = True
    first = np.zeros(fresh.shape, bool)
    first[index] = pays
    kinds = zip(start.cost.named().items(), start.alone.amounts(), strict=True)
    return {kind: first * whole + (made & ~fresh) * own for (kind, whole), own in kinds if whole}


def first_ones(uids: IntArray, particles: int) -> BoolArray:
    """(n,) which of these uids of so many particles are the first of their kind."""
    rows = np.arange(len(uids))
    first = np.empty(particles, int)
    first[uids[::-1]] = rows[::-1]  # of several values for one place, numpy keeps the last
    mask: BoolArray = first[uids] == rows
    return mask


def row_costs(
    rows: Rows,
    look: Estimator,
    particles: Particles,
    grid: Grid,
    rewards: int,
    price: Price = PLAIN,
    *,
    begun: bool = False,
) -> RowCosts:
    """What each of these rows costs, for so many rewards; of `price` count all but the rates.

    rows: (n,), resolved (plans.py), so that `parent` is the particle whose state a row starts from.
    In lockstep they and `particles` have a leading axis of searches, (B, n), and so do the costs. A
    row from step a to b takes the evaluations of the steps between: b - a, where each takes one. A
    row that is scored before the end takes that of its look, too: one at b for the x0 estimate. It
    takes one less if the evaluation at a is paid already. Children of one particle share its
    evaluation and its gradient: the first row that uses one pays. begun: whether that by which new
    particles begin is paid.
    """
    ahead = rows.score & (rows.stop < grid.steps)
    nfe = grid.calls[rows.stop] - grid.calls[rows.start]
    if np.count_nonzero(ahead):
        nfe = nfe + ahead * look.evaluations(rows.stop)
    users = (nfe > 0) & goes_on(rows)
    if np.count_nonzero(users):
        paid = users & take(particles.cached, rows.parent)
        # of rows that CONTINUE, no two have one parent
        if np.count_nonzero(users & (rows.kind != CONTINUE)):
            paid[users] |= ~first_ones(rows.parent[users], len(particles))
        nfe = nfe - paid
    decodes = rows.score if price.estimates == "decode" else rows.score & ~ahead
    costs: RowCosts = {
        "nfe": nfe,
        "decodes": decodes.astype(int),
        "reward_calls": rows.score * price.calls(rewards),
    }
    if price.estimates == "preview":
        costs["previews"] = ahead.astype(int)
    if np.count_nonzero(drafts := draft_calls(rows, look, grid.steps, price.start)):
        costs["draft_calls"] = drafts
    if not begun:
        costs = _added(costs, begin_costs(rows, particles, price.start))
    if price.tokens:
        costs["tokens"] = rows.score * price.tokens
    if price.features:
        made = rows.score & ~ahead if price.estimates == "nothing" else rows.score
        costs["features"] = made.astype(int)
    if price.bases:
        costs["base_calls"] = (rows.score & ~ahead) * price.bases
    up = rows.kind == ASCEND
    if np.count_nonzero(up):  # a particle's gradient is paid once
        parents = rows.parent[up]
        new = np.zeros(len(nfe), int)
        new[up] = first_ones(parents, len(particles)) & ~particles.has_gradient[parents]
        costs = _with_gradients(costs, price, new, new * price.depth, new * price.depth)
    if price.guided is not None:
        costs = _guided(costs, rows, particles, price, price.guided)
    return costs


def _guided(
    costs: RowCosts, rows: Rows, particles: Particles, price: Price, guided: GuidedSteps
) -> RowCosts:
    """With what guidance adds to each row."""
    gradients = guided.before[rows.stop] - guided.before[rows.start]
    (shared,) = (goes_on(rows) & (rows.stop > rows.start) & guided.at[rows.start]).nonzero()
    parents = rows.parent[shared]
    new = first_ones(parents, len(particles)) & ~particles.has_gradient[parents]
    gradients[shared] -= ~new
    again = np.zeros(len(gradients), int)
    again[shared] = new & particles.cached[parents] & guided.through
    return _with_gradients(costs, price, gradients, gradients * guided.through, again)


def _with_gradients(
    costs: RowCosts, price: Price, gradients: IntArray, backwards: IntArray, nfe: IntArray
) -> RowCosts:
    """With so many gradients a row, which go back through `backwards` evaluations, of which `nfe`
    are new."""
    more = {
        "nfe": nfe,
        "decodes": gradients,
        "reward_calls": gradients * price.asked,
        "gradients": gradients,
        "backwards": backwards,
    }
    return _added(costs, more)


def _added(costs: RowCosts, more: RowCosts) -> RowCosts:
    """Both together."""
    return costs | {
        kind: costs[kind] + column if kind in costs else column for kind, column in more.items()
    }


def costs_in_turn(
    steps: IntArray, looks: Sequence[Estimator], task: Task, *, begun: bool = False
) -> RowCosts:
    """What each stop (n,) takes of one particle that is scored at these steps (n,) by these looks,
    one after another.

    begun: whether that by which the particle begins is paid. What begins several is left out.
    """
    look = InTurn(tuple(looks))
    n = len(steps)
    kind = np.full(n, CONTINUE)
    none = np.zeros(n, int)
    no = np.zeros(n, bool)
    kind[0] = FRESH
    rows = Rows(kind, np.arange(n), np.append(0, steps[:-1]), steps, ~no, np.ones(n))
    cached = np.append(False, look.evaluations(steps)[:-1] > 0)
    before = Particles(
        none, none, rows.start, cached, ~no, np.empty((n, 0, 1)), none, np.zeros(n), no
    )
    return row_costs(
        rows, look, before, task.grid, 1, task.price, begun=begun or task.start.size > 1
    )


def finish_cost(
    step: IntArray | int,
    cached: BoolArray | bool,
    grid: Grid,
    rewards: int,
    price: Price = PLAIN,
    has_gradient: BoolArray | bool = False,
) -> Cost:
    """Cost of taking a particle from `step` to a finished, scored image; of several (n,), the one
    that takes least."""
    calls = grid.nfe - grid.calls[step] - (cached & (step < grid.steps))
    scored = Cost(
        0,
        1,
        price.calls(rewards),
        tokens=price.tokens,
        features=price.features,
        base_calls=price.bases,
    )
    if (guided := price.guided) is None:
        return Cost(int(calls.min())) + scored
    step = np.atleast_1d(step)
    cached = np.atleast_1d(cached)
    calls = np.atleast_1d(calls)
    gradients_left = guided.before[-1] - guided.before[step] - has_gradient
    again = (
        cached & guided.at[step] & ~np.asarray(has_gradient)
        if guided.through
        else np.zeros(len(step), bool)
    )
    least = np.lexsort((gradients_left, calls + again))[0]
    gradients = int(gradients_left[least])
    backwards = gradients if guided.through else 0
    asked = gradients * price.asked
    cost = Cost(int(again[least]), gradients, asked, gradients=gradients, backwards=backwards)
    return Cost(int(calls[least])) + scored + cost


def image_cost(grid: Grid, rewards: int, price: Price = PLAIN) -> Cost:
    """Cost of one image from a fresh seed, the first of its group."""
    return finish_cost(0, False, grid, rewards, price) + price.start.cost


@dataclass(frozen=True)
class Plan:
    """Rows (n,) of a move with everything that follows from them."""

    rows: Rows
    """As in Move, but that children which BRANCH are told from the row that CONTINUEs a particle.
    `parent` is the particle whose state a row starts from."""
    uid: IntArray
    """(n,) particle that the row takes on or makes."""
    seed: IntArray
    """(n,) uint64, of the particle's initial noise."""
    place: IntArray
    """(n,) of a fresh seed, its place among those that begin together (Start); else 0."""
    near: IntArray
    """(n,) of a row of kind NEAR, the sibling whose step noise it is near; else -1."""
    paid: BoolArray
    """(n,) whether the evaluation at `start` was paid before this move."""
    costs: RowCosts
    """What each row takes."""
    look: Estimator
    """As in Move."""
    drop: IntArray
    """As in Move."""
    reject: IntArray
    """As in Move."""

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
        evaluated = self.look.evaluations(rows.stop) > 0
        mask: BoolArray = (rows.score & evaluated) | (self.paid & (rows.stop == rows.start))
        return mask & (rows.stop < grid.steps)

    def take(self, rows: IntArray | slice) -> Plan:
        """Some of the rows. What a row is, and costs, depends on earlier rows of the plan, never on
        later ones."""
        columns = (
            self.uid[rows],
            self.seed[rows],
            self.place[rows],
            self.near[rows],
            self.paid[rows],
        )
        costs = {kind: column[rows] for kind, column in self.costs.items()}
        return Plan(self.rows.take(rows), *columns, costs, self.look, self.drop, self.reject)


def resolve(
    move: Move, particles: Particles, grid: Grid, rewards: int, price: Price = PLAIN, seed: int = 0
) -> Plan:
    """The plan of a valid move (validate.py). Fresh seeds count up from `seed`; those of torch,
    uint64, wrap around."""
    wanted = move.rows
    now = len(particles)
    kind = wanted.kind
    parent = wanted.parent
    near = np.full(len(move), -1)
    if np.count_nonzero(siblings := kind == NEAR):
        near = np.where(siblings, parent, -1)
        parent = np.where(siblings, particles.parent[parent], parent)
    (same,) = (kind == CONTINUE).nonzero()
    if len(set(parent[same].tolist())) < len(same):
        kind = kind.copy()
        kind[same[~first_ones(parent[same], now)]] = BRANCH
    rows = Rows(kind, parent, wanted.start, wanted.stop, wanted.score, wanted.share)
    new = kind != CONTINUE
    fresh = kind == FRESH
    uid = np.where(new, now - 1 + new.cumsum(), parent)
    index = particles.seeds - 1 + fresh.cumsum()
    seeds = np.uint64(seed) + index.astype(np.uint64)
    place = np.where(fresh, index % price.start.size, 0)
    paid = goes_on(rows)
    if now:
        seeds = np.where(fresh, seeds, particles.seed[parent])
        paid &= particles.cached[parent]
    costs = row_costs(rows, move.look, particles, grid, rewards, price)
    return Plan(rows, uid, seeds, place, near, paid, costs, move.look, move.drop, move.reject)


def owned_gradients(plan: Plan, particles: Particles, guided: BoolArray) -> BoolArray:
    """(n,) rows that stay at a guided step and have its gradient afterwards: it was paid before, or
    by this plan.

    guided: (K+1,) whether a reward's gradient guides the step on from there. A row that stays comes
    to have the gradient because a sibling that moves on pays for it: all children of one particle
    share it.
    """
    rows = plan.rows
    here = goes_on(plan.rows)
    stays = here & (rows.stop == rows.start)
    goes = here & (rows.stop > rows.start) & guided[rows.start]
    if not stays.any():
        return np.zeros(len(plan), bool)
    parent = np.where(here, rows.parent, 0)
    shared = np.isin(rows.parent, rows.parent[goes]) & (plan.paid | rows.score)
    mask: BoolArray = stays & (particles.has_gradient[parent] | shared)
    return mask


def unspent(
    plan: Plan, cancelled: Outcome, particles: Particles, grid: Grid, rewards: int, price: Price
) -> Cost:
    """The part of a plan's cost that was not spent where rows of it were cancelled.

    particles: as they are now, how far the cancelled rows got being recorded.
    """
    row_of = {uid: i for i, uid in enumerate(plan.uid.tolist())}
    at = np.array([row_of[uid] for uid in cancelled.uids.tolist()], int)
    ran = (cancelled.cached & ~plan.paid[at]) | (cancelled.step > plan.rows.start[at])
    whole = at[~ran]
    part = at[ran]
    # Gradients of finished images are the first thing that an engine does, so that they are spent.
    ascents = whole[plan.rows.kind[whole] == ASCEND]
    untouched = np.setdiff1d(whole, ascents)
    cost = total({kind: column[untouched] for kind, column in plan.costs.items()})
    if cancelled.begun is not None:
        # those that began, or could: what begins them, perhaps with others, was spent
        begun = plan.take(at[cancelled.begun & ~ran & from_noise(plan.rows.take(at))])
        later = row_costs(begun.rows, plan.look, particles, grid, rewards, price, begun=True)
        cost -= begun.cost - total(later)
    mixed = plan.rows.take(ascents)._replace(kind=np.full(len(ascents), MIX, int))
    rest = plan.rows.take(part)._replace(
        kind=np.full(len(part), CONTINUE, int),
        parent=cancelled.uids[ran],
        start=cancelled.step[ran],
    )
    for rows in (mixed, rest):
        cost += total(row_costs(rows, plan.look, particles, grid, rewards, price))
    return cost - cancelled.look_cost
