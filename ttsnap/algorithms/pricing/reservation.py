"""What a candidate is worth at a price of compute: reservation values, tabulated once for a
forecast.

A candidate's reservation value (Weitzman 1979, "Optimal Search for the Best Alternative"; Gittins
1979) is a sure reward: the one at which taking it is worth as much as going on with the candidate,
paying for each further check. With j checks paid and forecast e = (mu - m_d) / s,

    W_j(e, z) = E[ V_{j+1}(e', z) ] - lambda c_{j+1},   V_j = max(W_j, z),   V_d = max(e, z),
    I_j(e) = the z with W_j(e, z) = z,

where lambda is the price per evaluation over s, c the cost of a check, e' the next forecast.

`reservation` tabulates it by backward induction over the forecasts of recorded trajectories.
`look_up` reads the table. `break_even` reads it the other way: up to which price a candidate is
worth more than a reward. `tariff_of` says what checks cost one prompt of a search.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ttsnap.algorithms.pricing.forecast import Forecast
from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Task
from ttsnap.core.looks import read_look
from ttsnap.core.plans import costs_in_turn

STATES = np.linspace(-4.5, 4.5, 91)
"""Standardised forecasts (mu - m_R) / s on which reservation values are tabulated."""
PRICES = np.geomspace(3e-5, 2e-1, 32)
"""Prices per evaluation over s, on which they are tabulated."""
_RATIO = float(np.log(PRICES[1] / PRICES[0]))
_BANDWIDTH = 0.35
_PSEUDO_COUNT = 30.0


@lru_cache(maxsize=16)
def reservation(f: Forecast, costs: tuple[float, ...]) -> FloatArray:
    """Reservation values (len(PRICES), d + 1, len(STATES)), standardised.

    Entry j < d is for a candidate with j checks paid, whose next costs costs[j] evaluations. That
    of a fresh seed (j = 0) does not depend on the state. Entry d is the value of a finished one.
    """
    z = STATES
    d = len(f.checks)
    moves = [_transitions(f.paths[:, j], f.paths[:, j + 1], _BANDWIDTH) for j in range(d - 1)]
    first = _transitions(np.zeros(len(f.paths)), f.paths[:, 0], 10.0)[len(z) // 2]
    table = np.empty((len(PRICES), d + 1, len(z)))
    table[:, d] = z
    for i, price in enumerate(PRICES):
        worth = np.maximum(z[:, None], z)  # of state e when z is sure
        for j in range(d - 1, -1, -1):
            # A fresh seed has no state: one row for all, which BLAS might round differently row by
            # row.
            go = (
                moves[j - 1] @ worth if j else np.tile(first @ worth, (len(z), 1))
            ) - price * costs[j]
            table[i, j] = _indifferent(go - z)
            worth = np.maximum(go, z)
    return table


def _transitions(a: FloatArray, b: FloatArray, bandwidth: float) -> FloatArray:
    """How forecasts move from one check to the next, (len(STATES), len(STATES)), rows summing to
    one.

    Observed increments b - a, smoothed over a, mixed with the increments of all trajectories as
    pseudo-counts.
    """
    n = len(STATES)
    step = STATES[1] - STATES[0]
    ia, ib = (np.clip((v - STATES[0]) / step, 0, n - 1.001) for v in (a, b))
    counts = np.zeros((n, n))
    for da in (0, 1):
        for db in (0, 1):
            weight = np.abs(1 - da - ia % 1) * np.abs(1 - db - ib % 1)
            np.add.at(counts, (ia.astype(int) + da, ib.astype(int) + db), weight)
    row, column = np.indices((n, n))
    increments = np.zeros((n, 2 * n - 1))
    increments[row, column - row + n - 1] = counts
    everywhere = increments.sum(0) / increments.sum()
    near = np.exp(-0.5 * ((STATES[:, None] - STATES) / bandwidth) ** 2) @ increments
    near = (near + _PSEUDO_COUNT * everywhere) / (near.sum(1, keepdims=True) + _PSEUDO_COUNT)
    result = np.zeros((n, n))
    row, shift = np.indices(near.shape)
    np.add.at(result, (row, np.clip(row + shift - (n - 1), 0, n - 1)), near)
    return result


def _indifferent(gap: FloatArray) -> FloatArray:
    """For each row of gap (n, n), which falls along z, the z at which it is zero."""
    z = STATES
    last = len(STATES) - 1
    positive = (gap > 0).sum(1)
    q = np.clip(positive - 1, 0, last - 1)
    here, there = np.take_along_axis(gap, np.stack([q, q + 1], 1), 1).T
    inside = z[q] + (z[1] - z[0]) * here / np.where(here > there, here - there, 1.0)
    roots: FloatArray = np.where(
        positive == 0, z[0] + gap[:, 0], np.where(positive > last, z[last], inside)
    )
    return roots


def look_up(table: FloatArray, price: FloatArray, j: IntArray, state: FloatArray) -> FloatArray:
    """Reservation values at prices per evaluation over s, stages and standardised forecasts, all
    broadcast together.

    Linear between the tabulated points and, beyond the states, by shifting (a forecast higher by 1
    is worth 1 more).
    """
    t = np.log(np.maximum(price, 1e-30) / PRICES[0]) / _RATIO
    t = np.clip(t, 0, len(PRICES) - 1.001)
    i = t.astype(int)
    at, beyond = _along_prices(table, j, state)
    f = t - i
    return np.asarray((1 - f) * at(i) + f * at(i + 1) + beyond)


def break_even(table: FloatArray, j: IntArray, state: FloatArray, value: FloatArray) -> FloatArray:
    """The price per evaluation over s up to which reservation values exceed `value`: the inverse of
    `look_up`.

    0 where they do at no price, inf where they do at every tabulated one.
    """
    at, beyond = _along_prices(table, j, state)
    value = value - beyond
    low = np.zeros(np.shape(beyond), int)
    high = np.full(np.shape(beyond), len(PRICES) - 1)
    for _ in range(len(PRICES).bit_length() - 1):  # the last tabulated price at which they do
        middle = (low + high + 1) // 2
        exceeds = at(middle) > value
        low = np.where(exceeds, middle, low)
        high = np.where(exceeds, high, middle - 1)
    last = low == len(PRICES) - 1
    here = at(low)
    there = at(low + ~last)
    t = low + np.clip((here - value) / np.where(here > there, here - there, 1.0), 0, 1)
    return np.where(here <= value, 0.0, np.where(last, np.inf, PRICES[0] * np.exp(_RATIO * t)))


def _along_prices(
    table: FloatArray, j: IntArray, state: FloatArray
) -> tuple[Callable[[IntArray], FloatArray], FloatArray]:
    """Values at tabulated price i, less a part that is the same at all prices: both at stages and
    states (...,)."""
    inside = np.clip(state, STATES[0], STATES[-1])
    u = np.minimum((inside - STATES[0]) / (STATES[1] - STATES[0]), len(STATES) - 1.001)
    q = u.astype(int)
    g = u - q
    flat = table.reshape(-1)
    size = table.shape[1] * table.shape[2]
    first = np.asarray(j) * table.shape[2] + q

    def at(i: IntArray) -> FloatArray:
        k = i * size + first
        return np.asarray((1 - g) * flat.take(k) + g * flat.take(k + 1))

    return at, np.where(np.asarray(j) > 0, state - inside, 0.0)


_FIRST = 2.0
"""A pot starts above its calibrated price: prices only fall, and one too low for these prompts
wastes the pot."""


class Tariff(NamedTuple):
    """What checks cost one prompt, and the price that it starts from: what does not change during a
    search."""

    task: Task
    costs: FloatArray
    """(d,) of each check from the one before, in evaluations."""
    finish: FloatArray
    """(d+1,) of going straight to the end after so many checks, in evaluations."""
    table: FloatArray
    """Reservation values (`reservation`)."""
    price: float
    """Price that a pot starts from; 0 for an own budget."""
    last: float
    """Price at which a search ends; where a pot is empty, it ends before."""
    cap: float
    """The most that this prompt may spend."""


def tariff_of(f: Forecast, task: Task, price: float | None, shares: float) -> Tariff:
    """Of one prompt. price: that a pot starts from, None for the calibrated one; shares: of a pot,
    at most."""
    costs, finish = costs_of(f, task)
    first = last = 0.0
    if task.shared:
        first = _FIRST * f.price_for(task.allowance) if price is None else price
        last = 1e-6 * first
    table = reservation(f, tuple(costs.tolist()))
    return Tariff(
        task, costs, finish, table, first, last, task.allowance * (shares if task.shared else 1.0)
    )


def costs_of(f: Forecast, task: Task) -> tuple[FloatArray, FloatArray]:
    """`costs` and `finish` of a tariff.

    A check takes the evaluations up to its step, that of its look or the calls of the drafter, and
    a score. The particle goes on with its look's evaluation; the drafter's calls are paid for the
    look alone.
    """
    looks = [read_look(check.look) for check in f.checks]
    taken = costs_in_turn(f.steps, looks, task)
    paid = np.cumsum(taken["nfe"])
    costs = task.spent(taken)
    finish = np.append(task.grid.nfe - np.append(0, paid[:-1]) + task.score_cost, 0.0)
    return costs, finish
