"""ttsnap: better images from frozen text-to-image models, by spending inference compute on
purpose."""

from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.best_of_n import BestOfN
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.core.results import Candidate, Event, Result, show_by
from ttsnap.core.selection import Selection
from ttsnap.loop.budget import Budget
from ttsnap.loop.search import search
from ttsnap.version import __version__

__all__ = [
    "BestOfN",
    "Budget",
    "Candidate",
    "Cost",
    "Event",
    "Grid",
    "Prompt",
    "Result",
    "SeedPruning",
    "Selection",
    "make_algorithm",
    "search",
    "__version__",
]


def _page(result: Result) -> str:
    # with PIL, which takes longer to import than all of the above
    from ttsnap.results.sheet import page_of

    return page_of(result)


show_by(_page)
