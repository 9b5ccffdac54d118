"""The rows of moves that a LiveEngine carries out: which particle goes where, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ttsnap.core.grid import Grid
from ttsnap.engine.looks import LookRun
from ttsnap.engine.store import Node
from ttsnap.sampling import rng


class NearNoise(NamedTuple):
    """The noise of another particle's step, and the share of it in a row's first step; the rest is fresh."""

    source: rng.Source
    share: float


class AscentStart(NamedTuple):
    """A row's beginning before it is computed: the initial noise of a finished particle, turned along the gradient of
    its image's rewards. share: of the old noise that is kept."""

    parent: Node
    share: float


@dataclass(slots=True, eq=False)
class Row:
    """One row of a move under way.

    key: (seed, branch), the particle's source of sampling noise. node: where it is now. stop: the grid step that it
    goes to. end: the evaluations that have brought it there. last: whether that is the finished image. look: what is
    scored there. branched_at: the evaluations at which it leaves another particle, -1 for one that goes on.
    """

    job: int
    uid: int
    key: rng.Key
    node: Node
    stop: int
    end: int
    last: bool
    look: LookRun
    branched_at: int = -1
    near: NearNoise | None = None
    """Where its first step draws noise near that of another step; None for a plain row."""
    ascends_from: AscentStart | None = None
    """Set until its initial noise is computed; None for rows that do not ascend."""
    guided_steps: frozenset[int] = frozenset()
    """The positions from which its steps follow a gradient."""
    awaits_gradient: bool = False
    """Whether it stays where it is until the particle's gradient is there, which a sibling that moves on pays for."""

    @property
    def needs_gradient(self) -> bool:
        """Whether it cannot go on, or end here, without a gradient that is not there."""
        moves = self.node.position < self.end and self.node.position in self.guided_steps
        return (moves or self.awaits_gradient) and self.node.gradient is None

    @property
    def noise_source(self) -> rng.Source:
        """Where the noise of its next step comes from."""
        own = (*self.key, self.node.position)
        if self.near is None or self.node.position != self.branched_at:
            return own
        return rng.near(self.near.source, self.near.share, own)

    @property
    def can_step(self) -> bool:
        """Whether what its next step needs is computed."""
        ready = self.node.prediction is not None and self.node.position < self.end
        return ready and not self.needs_gradient

    @property
    def at_stop(self) -> bool:
        """Whether it has come to where it goes, with all that it needs there but for what its look does beside it."""
        here = self.node.position == self.end and not self.needs_gradient
        return here and (self.node.prediction is not None or not self.look.reads_estimate)

    @property
    def waiting(self) -> Node | None:
        """The node that must be evaluated, or get its gradient, before this row can go on; None where none must."""
        if self.needs_gradient:
            return self.node
        if self.at_stop:
            return self.look.waiting
        return self.node if self.node.prediction is None else None

    @property
    def lane(self) -> int:
        """Calls of the drafter that it waits for; 0 where it waits for the denoiser, or for nothing."""
        return self.look.draft_calls if self.look.draft_calls and self.at_stop and not self.look.done else 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute but its score."""
        return self.at_stop and self.look.done

    @property
    def scored(self) -> bool:
        """Whether it gets a score at its stop."""
        return self.look.scores

    @property
    def scored_node(self) -> Node:
        """The node whose x0 is scored."""
        return self.look.scored(self.node)

    def level(self, grid: Grid) -> float:
        """The noise level of what is scored."""
        return self.look.level(self.stop, grid)
