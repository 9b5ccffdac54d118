"""Looks being carried out: what is scored where a row stops, and the evaluations that this takes.

core/looks.py says which looks there are and what they cost; each is run here by one small class, and `look_run` says
which one a row gets. A look may need evaluations beyond those that bring the particle to its stop. It makes them on a
node beside the particle, which itself stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.looks import Draft, Estimate, Estimator, Rollout
from ttsnap.engine.store import Node, stacked
from ttsnap.sampling.denoiser import Denoiser, drafts_of
from ttsnap.sampling.kernels import Kernel, Ode, Prediction, Sde


class LookRun:
    """The look at one row. The base class looks at nothing: the row ends where it stops, without a score."""

    scores: ClassVar[bool] = False
    reads_estimate: ClassVar[bool] = False
    """Whether it needs the x0 estimate at the stop, hence an evaluation there."""
    draft_calls: int = 0
    """Calls of the drafter that `waiting` takes, 0 for an evaluation of the denoiser."""
    node: Node | None = None
    """The last node that was made beside the particle, for a look that makes any."""

    def scored(self, here: Node) -> Node:
        """The node whose x0 is scored, of a particle that stops `here`."""
        return here if self.node is None else self.node

    def level(self, stop: int, grid: Grid) -> float:
        """The noise level, in [0, 1], of that x0, for a row that goes to step `stop`. Rewards get it."""
        return grid.levels[stop if self.node is None else self.node.position]

    @property
    def waiting(self) -> Node | None:
        """The node that must be evaluated next for this look, once the particle is at its stop."""
        return self.node if self.node is not None and self.node.prediction is None else None

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


class BesideRun(EstimateRun):
    """Scores the x0 estimate of the last of some nodes beside the particle, each made from the one before it.

    points: the grid steps of these nodes, ascending, all later than the stop. A subclass says how a latent gets there.
    """

    def __init__(self, points: Sequence[int]) -> None:
        self._points, self._reached = tuple(points), 0

    @staticmethod
    def moved(denoiser: Denoiser, x: Tensor, prediction: Prediction, k: Tensor, to: Tensor) -> Tensor:
        """x (N, ...), evaluated at grid steps k (N,) -> the latents (N, ...) to evaluate at grid steps `to` (N,)."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        return self._reached == len(self._points) and self.waiting is None

    @property
    def cost(self) -> Cost:
        return Cost(self._reached - int(self.waiting is not None))

    def next_point(self, here: Node) -> int | None:
        """The grid step that it goes to now; None where it waits for an evaluation, or is at its end."""
        ready = self._reached < len(self._points) and self.scored(here).prediction is not None
        return self._points[self._reached] if ready else None

    def arrive(self, node: Node) -> None:
        """It has come to this node, at the next of its points."""
        self.node, self._reached = node, self._reached + 1


class RolloutRun(BesideRun):
    """Its nodes are those of a coarse rollout: ODE steps from the stop over a few later grid points."""

    @staticmethod
    def moved(denoiser: Denoiser, x: Tensor, prediction: Prediction, k: Tensor, to: Tensor) -> Tensor:
        return Ode(denoiser.path, denoiser.times).jump(x, prediction, k, to)


class DraftRun(LookRun):
    """Scores what the drafter makes of the particle's latent, on a node beside the particle.

    level: the noise level that the drafter's last call is told. Its answer is blurred about as an x0 estimate of that
    level is, and noise-aware rewards judge it as one.
    """

    scores = True

    def __init__(self, calls: int, level: float) -> None:
        self.draft_calls, self._level = calls, level

    def begin(self, here: Node) -> None:
        """The particle has come to its stop."""
        if self.node is None:
            self.node = Node(here.job, here.seed, here.position, here.latent, mixed_in=here.mixed_in)

    def level(self, stop: int, grid: Grid) -> float:
        return self._level

    @property
    def done(self) -> bool:
        return self.node is not None and self.waiting is None

    @property
    def cost(self) -> Cost:
        return Cost(draft_calls=self.draft_calls) if self.done else Cost()


class BegunRun(LookRun):
    """Scores the draft that the particle has begun from. level: as of DraftRun."""

    scores = True

    def __init__(self, level: float) -> None:
        self._level = level

    def scored(self, here: Node) -> Node:
        assert here.guess is not None
        return Node(here.job, here.seed, here.position, here.latent, prediction=Prediction(here.guess, here.guess))

    def level(self, stop: int, grid: Grid) -> float:
        return self._level


def advance_looks(looks: Iterable[tuple[LookRun, Node]], denoiser: Denoiser) -> None:
    """Take each of these looks on to its next node, if it can go on; the nodes are where particles stop."""
    ready: dict[type[BesideRun], list[tuple[BesideRun, Node, int]]] = {}
    for look, here in looks:
        if isinstance(look, DraftRun):
            look.begin(here)
        if isinstance(look, BesideRun) and (point := look.next_point(here)) is not None:
            ready.setdefault(type(look), []).append((look, look.scored(here), point))
    for kind, going in ready.items():
        x, prediction, k = stacked([node for _, node, _ in going])
        moved = kind.moved(denoiser, x, prediction, k, torch.tensor([point for _, _, point in going]))
        for (look, node, point), latent in zip(going, moved, strict=True):
            look.arrive(Node(node.job, node.seed, point, latent))


def check_drafts(denoiser: Denoiser, kernel: Kernel) -> None:
    """ValueError where the denoiser has a drafter that is of no use with this kernel."""
    if denoiser.drafts is None:
        return
    if kernel.stochastic and not (isinstance(kernel, Sde) and kernel.begin < 1):
        raise ValueError("a draft guesses where a deterministic sampler ends, and this kernel draws noise from the "
                         "start, which leads to another image; leave draft out, take kernel ode, or let the noise "
                         "begin later: sde:square:3:0.7")  # fmt: skip


def look_run(look: Estimator, score: bool, stop: int, denoiser: Denoiser) -> LookRun:
    """The look at a row that goes to grid step `stop` and, where `score`, is scored there.

    ValueError for a look that this engine cannot carry out.
    """
    steps = denoiser.grid.steps
    if not score:
        return LookRun()
    if stop == steps:
        return FinishedRun()
    if isinstance(look, Rollout) and (points := look.points(stop, steps)):
        return RolloutRun(points)
    if isinstance(look, Draft):
        drafts = drafts_of(denoiser)
        if drafts.start is not None and (stop, look.calls) == (0, drafts.calls):
            return BegunRun(drafts.start.level)
        return DraftRun(look.calls, drafts.level(stop, look.calls))
    if isinstance(look, Estimate | Rollout):
        return EstimateRun()
    raise ValueError(f"the live engine cannot look at particles by {look.name!r}; use estimate, rollout or draft")
