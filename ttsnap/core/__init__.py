"""The central types, and what follows from them without a model: grids, particles, moves, costs and prices.

It imports numpy and nothing else of ttsnap.
"""

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray, take
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid, Task
from ttsnap.core.moves import Move, advance, branch, climb, fresh, perturb
from ttsnap.core.particles import Particles, Utility
from ttsnap.core.price import Guided, Price, Rates
from ttsnap.core.protocols import Algorithm, Engine, Outcome, Reward
from ttsnap.core.results import Candidate, Event, Result

__all__ = [
    "Algorithm",
    "BoolArray",
    "Candidate",
    "Cost",
    "Engine",
    "Event",
    "FloatArray",
    "Grid",
    "Guided",
    "IntArray",
    "Move",
    "Outcome",
    "Particles",
    "Price",
    "Rates",
    "Result",
    "Reward",
    "Task",
    "Utility",
    "advance",
    "branch",
    "climb",
    "fresh",
    "perturb",
    "take",
]
