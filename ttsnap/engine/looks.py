"""Looks being carried out: what is scored where a row stops, and the evaluations that this takes.

core/looks.py says which looks there are and what they cost; each is run here by one small class,
and `look_run` says which one a row gets. The particle itself stays where it is.
"""

from __future__ import annotations

from typing import ClassVar

from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.looks import Draft, Estimate, Estimator
from ttsnap.engine.store import Node
from ttsnap.sampling.denoiser import Denoiser, drafts_of
from ttsnap.sampling.kernels import Kernel, Prediction, Sde


class LookRun:
    """The look at one row. The base class looks at nothing: the row ends where it stops, without a
    score."""

    scores: ClassVar[bool] = False
    reads_estimate: ClassVar[bool] = False
    """Whether it needs the x0 estimate at the stop, hence an evaluation there."""

    def begin(self, here: Node) -> None:
        """The particle has come to its stop."""

    def scored(self, here: Node) -> Node:
        """The node whose x0 is scored, of a particle that stops `here`."""
        return here

    def level(self, stop: int, grid: Grid) -> float:
        """The noise level, in [0, 1], of that x0, for a row that goes to step `stop`. Rewards get
        it."""
        return grid.levels[stop]

    @property
    def waiting(self) -> Node | None:
        """The node that the drafter must guess from for this look, once the particle is at its
        stop."""
        return None

    @property
    def done(self) -> bool:
        """Whether everything is there to be scored, once the particle is at its stop."""
        return True

    @property
    def cost(self) -> Cost:
        """What was spent so far for this look alone, but for its score."""
        return Cost()


class FinishedRun(LookRun):
    """Scores the finished image."""

    scores = True


class EstimateRun(LookRun):
    """Scores the x0 (Tweedie) estimate at the stop."""

    scores = True
    reads_estimate = True


class DraftRun(LookRun):
    """Scores what the drafter makes of the particle's latent, on a node beside the particle.

    level: the noise level that the drafter's last call is told. Its answer is blurred about as an
    x0 estimate of that level is, and noise-aware rewards judge it as one.
    """

    scores = True

    def __init__(self, calls: int, level: float) -> None:
        self._calls = calls
        self._level = level
        self._beside: Node | None = None

    def begin(self, here: Node) -> None:
        if self._beside is None:
            self._beside = Node(
                here.job,
                here.seed,
                here.position,
                here.latent,
                mixed_in=here.mixed_in,
                draft_calls=self._calls,
            )

    def scored(self, here: Node) -> Node:
        return self._beside or here

    def level(self, stop: int, grid: Grid) -> float:
        return self._level

    @property
    def waiting(self) -> Node | None:
        return (
            self._beside if self._beside is not None and self._beside.prediction is None else None
        )

    @property
    def done(self) -> bool:
        return self._beside is not None and self.waiting is None

    @property
    def cost(self) -> Cost:
        return Cost(draft_calls=self._calls) if self.done else Cost()


class BegunRun(LookRun):
    """Scores the draft that the particle has begun from. level: as of DraftRun."""

    scores = True

    def __init__(self, level: float) -> None:
        self._level = level

    def scored(self, here: Node) -> Node:
        assert here.guess is not None
        return Node(
            here.job,
            here.seed,
            here.position,
            here.latent,
            prediction=Prediction(here.guess, here.guess),
        )

    def level(self, stop: int, grid: Grid) -> float:
        return self._level


def check_drafts(denoiser: Denoiser, kernel: Kernel) -> None:
    """ValueError where the denoiser has a drafter that is of no use with this kernel."""
    if denoiser.drafts is None:
        return
    if kernel.stochastic and not (isinstance(kernel, Sde) and kernel.begin < 1):
        raise ValueError(
            "a draft guesses where a deterministic sampler ends, and this kernel draws noise from"
            " the start, which leads to another image; leave draft out, take kernel ode, or let the"
            " noise begin later: sde:square:3:0.7"
        )


def look_run(look: Estimator, score: bool, stop: int, denoiser: Denoiser) -> LookRun:
    """The look at a row that goes to grid step `stop` and, where `score`, is scored there.

    ValueError for a look that this engine cannot carry out.
    """
    if not score:
        return LookRun()
    if stop == denoiser.grid.steps:
        return FinishedRun()
    if isinstance(look, Draft):
        starter = denoiser.starter
        if starter is not None and (stop, look.calls) == (0, starter.start.alone.draft_calls):
            return BegunRun(starter.guess_level)
        return DraftRun(look.calls, drafts_of(denoiser).level(stop, look.calls))
    if isinstance(look, Estimate):
        return EstimateRun()
    raise ValueError(
        f"the live engine cannot look at particles by {look.name!r}; use estimate or draft"
    )
