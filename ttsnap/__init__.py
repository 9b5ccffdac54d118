"""ttsnap: better images from frozen text-to-image models, by spending inference compute on purpose."""

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.best_of_n import BestOfN
from ttsnap.algorithms.seed_pruning import SeedPruning, ttsnap
from ttsnap.budget import Budget
from ttsnap.search import search
from ttsnap.types import Candidate, Cost, Event, Grid, Result
from ttsnap.version import __version__

__all__ = [
    "BestOfN",
    "Budget",
    "Candidate",
    "Cost",
    "Event",
    "Grid",
    "Result",
    "SeedPruning",
    "make_algorithm",
    "search",
    "__version__",
    "ttsnap",
]
