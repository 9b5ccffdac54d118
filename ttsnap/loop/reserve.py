"""What a search holds back, so that it can always finish an image."""

from __future__ import annotations

import numpy as np

from ttsnap.core.cost import Cost
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.core.pricing import finish_cost
from ttsnap.core.protocols import Engine


def reserve_after(plan: Plan, particles: Particles, engine: Engine) -> Cost:
    """What must be held back after a plan: the cost of finishing the nearest particle, until one is finished.

    The nearest may be one that the plan advances, one that rests, or a fresh seed.
    """
    grid = engine.grid
    rows, last = plan.rows, plan.rows.stop == grid.steps
    if np.count_nonzero(particles.finished) or np.count_nonzero(rows.score & last):
        return Cost()
    resting = particles.alive.copy()
    resting[rows.parent[rows.parent >= 0]] = False
    resting[plan.drop] = False
    step = np.concatenate([[0], rows.stop, particles.step[resting]])
    evaluated = rows.score & (plan.look.evaluations(rows.stop, grid) > 0) & ~last
    cached = np.concatenate([[False], evaluated, particles.cached[resting]])
    has_gradient = np.concatenate([np.zeros(1 + len(plan), bool), particles.has_gradient[resting]])
    return finish_cost(step, cached, grid, len(engine.reward_names), engine.price, has_gradient)
