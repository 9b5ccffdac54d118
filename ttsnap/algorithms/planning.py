"""What a step ahead takes, for algorithms that plan by their allowance."""

from __future__ import annotations

from ttsnap.core.grid import Task


def evaluations(task: Task, at: int, stop: int, *, paid: bool | None = None) -> float:
    """What it takes to bring one particle from step `at` to `stop` and score it there, as core/pricing.py counts it.

    paid: whether the evaluation at `at` is; None: it was scored there, or is a fresh seed. Decodes and rewards are in
    evaluations, too.
    """
    grid, last = task.grid, stop == task.grid.steps
    calls = int(grid.calls[stop] - grid.calls[at]) + (not last) - (at > 0 if paid is None else paid)
    return calls + (task.score_cost if last else task.checking)
