"""What checks cost one prompt of a search, and the price of compute that it starts from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ttsnap.algorithms.pricing.forecast import Forecast
from ttsnap.algorithms.pricing.reservation import reservation
from ttsnap.core.arrays import FloatArray
from ttsnap.core.grid import Task
from ttsnap.core.looks import read_look

_FIRST = 2.0
"""A pot starts above its calibrated price: prices only fall, and one too low for these prompts wastes the pot."""


class Tariff(NamedTuple):
    """What does not change during a search: costs (d,) of each check from the one before and finish (d+1,) of going
    straight to the end, in evaluations; table of reservation values; price that a pot starts from, 0 for an own
    budget; cap, the most that this prompt may spend."""

    task: Task
    costs: FloatArray
    finish: FloatArray
    table: FloatArray
    price: float
    cap: float


def tariff_of(f: Forecast, task: Task, price: float | None, shares: float) -> Tariff:
    """Of one prompt. price: that a pot starts from, None for the calibrated one; shares: of a pot, at most."""
    costs, finish = costs_of(f, task)
    first = 0.0
    if task.shared:
        first = price if price is not None else _FIRST * f.price_for(task.allowance)
    table = reservation(f, tuple(costs.tolist()))
    return Tariff(task, costs, finish, table, first, task.allowance * (shares if task.shared else 1.0))


def costs_of(f: Forecast, task: Task) -> tuple[FloatArray, FloatArray]:
    """`costs` and `finish` of a tariff.

    A check takes the evaluations up to its step, those of its look and the calls of the drafter, and a score. Of its
    look's evaluations, the particle goes on with the first; what else it takes is paid for the look alone.
    """
    ahead, looks = f.steps < task.grid.steps, [read_look(check.look) for check in f.checks]
    stops = f.steps[:, None]
    made = ahead * np.concatenate([look.evaluations(at, task.grid) for look, at in zip(looks, stops, strict=True)])
    drafts = ahead * np.concatenate([look.draft_calls(at) for look, at in zip(looks, stops, strict=True)])
    paid = task.grid.calls[f.steps] + (made > 0)
    alone = np.maximum(made - 1, 0) + task.draft_cost * drafts
    costs = np.diff(paid, prepend=0) + alone + np.where(ahead, task.checking, task.score_cost)
    finish = np.append(task.grid.nfe - np.append(0, paid[:-1]) + task.score_cost, 0.0)
    return costs, finish
