"""The central types, and what follows from them without a model: grids, particles, moves, costs and
prices.

It imports numpy and nothing else of ttsnap.
"""

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray, take
from ttsnap.core.cost import Cost, Rates
from ttsnap.core.grid import Grid, Task
from ttsnap.core.looks import Estimate, Estimator
from ttsnap.core.moves import Kind, Move, Rows, advance, ascend, fresh, perturb, renoise
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.core.price import GuidedSteps, Price
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Adopting, Algorithm, Engine, Refining, Reward, Widening
from ttsnap.core.results import Candidate, Event, Result, Spent
from ttsnap.core.selection import Selection
from ttsnap.core.utility import Utility

__all__ = [
    "Adopting",
    "Algorithm",
    "BoolArray",
    "Candidate",
    "Cost",
    "Engine",
    "Estimate",
    "Estimator",
    "Event",
    "FloatArray",
    "Gradient",
    "Grid",
    "GuidedSteps",
    "IntArray",
    "Kind",
    "Move",
    "Need",
    "Outcome",
    "Particles",
    "Plan",
    "Price",
    "Prompt",
    "Rates",
    "Result",
    "Refining",
    "Reward",
    "Rows",
    "Selection",
    "Spent",
    "Task",
    "Utility",
    "Widening",
    "advance",
    "ascend",
    "fresh",
    "perturb",
    "renoise",
    "take",
]
