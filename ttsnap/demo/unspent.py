"""Why a search ended before its budget was spent: most run at one size, and the next larger one costs more."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.options import options_of
from ttsnap.core.grid import Grid
from ttsnap.core.spent import Spent
from ttsnap.demo.asked import Asked, title_of
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import fit, search

SMALL = 0.1
"""Less than this share of a budget left over needs no explanation."""


def why_unspent(asked: Asked, grid: Grid, spent: Spent) -> str:
    """A sentence on what a search left of its evaluations; "" where that is next to nothing, or they were not limited.

    asked: the search, its budget in evaluations.
    """
    allowed, taken = asked.budget.nfe, spent.price.evaluations(spent.cost)
    if not allowed or allowed - taken < SMALL * allowed:
        return ""
    head = f"{title_of(asked.algorithm)} ended after {taken:,g} of {allowed:,} evaluations"
    meaning = next((option.text for option in options_of(asked.algorithm) if option.name == "n"), "")
    meaning = re.split("[;.]", meaning)[0]
    what = f" ({meaning})" if len(meaning.split()) > 2 or meaning == "seeds" else ""
    made: Any = make_algorithm(asked.algorithm)
    if made.n is not None:
        return f"{head}: it runs with n = {made.n}{what} whatever the budget."
    calls = spent.cost.draft_calls // max(1, spent.seeds)  # of each seed's draft
    engine = DryEngine(grid, asked.rewards, price=spent.price, draft_calls=calls)
    sized: Any = fit(made, engine, Budget(nfe=allowed), asked.keep)
    (larger,) = search([""], replace(sized, n=sized.n + 1), engine, keep=asked.keep)
    if (more := spent.price.evaluations(larger.spent.cost)) <= allowed:
        return f"{head}: it came to its end with less."
    return f"{head}: it ran with n = {sized.n}{what}, and n = {sized.n + 1} would take {more:,g}."
