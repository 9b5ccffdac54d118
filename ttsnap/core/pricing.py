"""What rows of a move cost, each by itself, before they run: exactly, but for tokens, of which it is the most."""

from __future__ import annotations

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.looks import Estimator
from ttsnap.core.moves import ASCEND, CONTINUE, FRESH, NEAR, Rows
from ttsnap.core.particles import Particles
from ttsnap.core.price import PLAIN, Guided, Price

RowCosts = dict[str, IntArray]
"""By kind of cost, what each row takes (n,). Kinds that none of them takes may be missing."""


def total(costs: RowCosts) -> Cost:
    """The cost of all rows together."""
    return Cost(**{kind: int(np.add.reduce(column)) for kind, column in costs.items()})


def goes_on(rows: Rows) -> BoolArray:
    """(n,) rows that go on from the step where their parent is, and share its evaluation there: CONTINUE to NEAR."""
    mask: BoolArray = (rows.kind > FRESH) & (rows.kind <= NEAR)
    return mask


def first_ones(uids: IntArray, particles: int) -> BoolArray:
    """(n,) which of these uids of so many particles are the first of their kind."""
    rows, first = np.arange(len(uids)), np.empty(particles, int)
    first[uids[::-1]] = rows[::-1]  # of several values for one place, numpy keeps the last
    mask: BoolArray = first[uids] == rows
    return mask


def row_costs(
    rows: Rows, look: Estimator, particles: Particles, grid: Grid, rewards: int, price: Price = PLAIN
) -> RowCosts:
    """What each of these rows costs, for so many rewards; of `price` count all but the rates.

    rows: resolved (plans.py), so that `parent` is the particle whose state a row starts from.
    A row from step a to b takes the evaluations of the steps between (b - a, where each takes one), those of its look
    if it is scored before the end (the x0 estimate at b takes one), and one less if the evaluation at a is paid
    already. Children of one particle share its evaluation: the first row that uses it pays. So it is with gradients.
    """
    ahead = rows.score & (rows.stop < grid.steps)
    nfe = grid.calls[rows.stop] - grid.calls[rows.start]
    if np.count_nonzero(ahead):
        nfe[ahead] += look.evaluations(rows.stop[ahead], grid)
    (users,) = ((nfe > 0) & goes_on(rows)).nonzero()
    if len(users):
        parents = rows.parent[users]
        paid = particles.cached[parents]
        if np.count_nonzero(rows.kind[users] != CONTINUE):  # of rows that CONTINUE, no two have one parent
            paid |= ~first_ones(parents, len(particles))
        nfe[users] -= paid
    decodes = rows.score if price.estimates == "decode" else rows.score & ~ahead
    costs: RowCosts = {"nfe": nfe, "decodes": decodes.astype(int), "reward_calls": rows.score * price.calls(rewards)}
    if price.estimates == "preview":
        costs["previews"] = ahead.astype(int)
    if np.count_nonzero(drafts := ahead * look.draft_calls(rows.stop)):
        costs["draft_calls"] = drafts
    if price.tokens:
        costs["tokens"] = rows.score * price.tokens
    (up,) = (rows.kind == ASCEND).nonzero()
    if len(up):  # a particle's gradient is paid once
        parents = rows.parent[up]
        new = np.zeros(len(nfe), int)
        new[up] = first_ones(parents, len(particles)) & ~particles.has_gradient[parents]
        costs = _with_gradients(costs, price, new, new * price.depth, new * price.depth)
    if price.guided is not None:
        costs = _guided(costs, rows, particles, price, price.guided)
    return costs


def _guided(costs: RowCosts, rows: Rows, particles: Particles, price: Price, guided: Guided) -> RowCosts:
    """With what guidance adds to each row."""
    gradients = guided.before[rows.stop] - guided.before[rows.start]
    (shared,) = (goes_on(rows) & (rows.stop > rows.start) & guided.at[rows.start]).nonzero()
    parents = rows.parent[shared]
    new = first_ones(parents, len(particles)) & ~particles.has_gradient[parents]
    gradients[shared] -= ~new
    again = np.zeros(len(gradients), int)
    again[shared] = new & particles.cached[parents] & guided.through
    return _with_gradients(costs, price, gradients, gradients * guided.through, again)


def _with_gradients(costs: RowCosts, price: Price, gradients: IntArray, backwards: IntArray, nfe: IntArray) -> RowCosts:
    """With so many gradients a row, which go back through `backwards` evaluations, of which `nfe` are new."""
    more = {"nfe": nfe, "decodes": gradients, "reward_calls": gradients * price.asked,
            "gradients": gradients, "backwards": backwards}  # fmt: skip
    return costs | {kind: costs[kind] + column if kind in costs else column for kind, column in more.items()}


def finish_cost(
    step: IntArray | int,
    cached: BoolArray | bool,
    grid: Grid,
    rewards: int,
    price: Price = PLAIN,
    has_gradient: BoolArray | bool = False,
) -> Cost:
    """Cost of taking a particle from `step` to a finished, scored image; of several (n,), the one that takes least."""
    calls = grid.nfe - grid.calls[step] - (cached & (step < grid.steps))
    scoring = price.calls(rewards)
    if (guided := price.guided) is None:
        return Cost(int(calls.min()), 1, scoring, tokens=price.tokens)
    step, cached, calls = np.atleast_1d(step), np.atleast_1d(cached), np.atleast_1d(calls)
    gradients_left = guided.before[-1] - guided.before[step] - has_gradient
    again = cached & guided.at[step] & ~np.asarray(has_gradient) if guided.through else np.zeros(len(step), bool)
    least = np.lexsort((gradients_left, calls + again))[0]
    gradients = int(gradients_left[least])
    cost = price.of_gradients(gradients, gradients if guided.through else 0, int(again[least]))
    return Cost(int(calls[least]), 1, scoring, tokens=price.tokens) + cost
