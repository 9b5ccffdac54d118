"""The ledger that keeps to a budget, and what it holds back for a finished image."""

from __future__ import annotations

import numpy as np

from ttsnap.core.cost import Cost
from ttsnap.core.outcome import NOTHING
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan, finish_cost
from ttsnap.core.price import Price
from ttsnap.core.protocols import Engine
from ttsnap.loop.budget import Budget


class Ledger:
    """Charges against a budget, with a reserve that guarantees one finished image.

    `reserve` is held back while nothing is finished. A ledger may have a `parent` that several
    prompts share: a charge must then fit both, and what the others hold counts in the parent.
    """

    def __init__(self, budget: Budget, price: Price, parent: Ledger | None = None) -> None:
        if budget.images is not None:
            raise ValueError(f"budget {budget} must be counted on a grid first (Budget.on)")
        self.budget = budget
        self.price = price
        self.parent = parent
        self.spent = Cost()
        self.reserve = Cost()

    @property
    def capped(self) -> bool:
        """Whether there is a cap at all."""
        return self.budget != Budget() or (self.parent is not None and self.parent.capped)

    def affords(self, cost: Cost, reserve: Cost = NOTHING) -> bool:
        """Whether `cost` fits while `reserve` (which replaces the present one) stays covered."""
        if self.budget.shortfall(self.spent.plus(cost, reserve), self.price) is not None:
            return False
        if self.parent is None:
            return True
        return self.parent.affords(cost, self.parent.reserve - self.reserve + reserve)

    def reached(self, cost: Cost) -> str:
        """The cap for which `cost` does not fit, in words."""
        cap = self.budget.broken(self.spent.plus(cost, self.reserve), self.price)
        if cap is None:
            return self.parent.reached(cost) if self.parent is not None else ""
        return f"{cap[2]:.6g} {cap[0]} were used up"

    def hold(self, reserve: Cost) -> None:
        """Set the amount held back."""
        self._set(self.spent, reserve)

    def charge(self, cost: Cost, reserve: Cost = NOTHING) -> None:
        """Spend `cost` and hold `reserve` from now on. Raises ValueError when it does not fit."""
        if not self.affords(cost, reserve):
            raise ValueError(
                f"charge {cost} with reserve {reserve} exceeds {self.budget}; spent {self.spent}"
            )
        self._set(self.spent + cost, reserve)

    def refund(self, cost: Cost) -> None:
        """Take back what was charged for work that was cancelled before it ran."""
        self._set(self.spent - cost, self.reserve)

    def close(self) -> None:
        """Nothing more is spent: what is left is the others'."""
        self._set(self.spent, Cost())

    def _set(self, spent: Cost, reserve: Cost) -> None:
        before = self.reserve
        more = spent - self.spent
        self.spent = spent
        self.reserve = reserve
        if self.parent is not None:
            self.parent._set(self.parent.spent + more, self.parent.reserve - before + self.reserve)

    def __str__(self) -> str:
        """The budget that it keeps to, as the user may write it."""
        return (
            str(self.budget)
            if self.parent is None
            else f"{self.parent.budget} shared by all prompts"
        )


def reserve_after(plan: Plan, particles: Particles, engine: Engine) -> Cost:
    """What must be held back after a plan: the cost of finishing the nearest particle, until one is
    finished.

    The nearest may be one that the plan advances, one that rests, or a fresh seed.
    """
    grid = engine.grid
    rows = plan.rows
    last = plan.rows.stop == grid.steps
    if np.count_nonzero(particles.finished) or np.count_nonzero(rows.score & last):
        return Cost()
    resting = particles.alive.copy()
    resting[rows.parent[rows.parent >= 0]] = False
    resting[plan.drop] = False
    step = np.concatenate([[0], rows.stop, particles.step[resting]])
    evaluated = rows.score & (plan.look.evaluations(rows.stop) > 0) & ~last
    cached = np.concatenate([[False], evaluated, particles.cached[resting]])
    has_gradient = np.concatenate([np.zeros(1 + len(plan), bool), particles.has_gradient[resting]])
    return finish_cost(step, cached, grid, len(engine.reward_names), engine.price, has_gradient)
