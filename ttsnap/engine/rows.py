"""The rows of moves that a LiveEngine carries out: which particle goes where, and what it waits
for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ttsnap.core.moves import Kind
from ttsnap.core.plans import Plan
from ttsnap.engine.fair import Stage
from ttsnap.engine.looks import LookRun, look_run
from ttsnap.engine.noise import InitialNoise
from ttsnap.engine.store import Node, Store
from ttsnap.sampling import rng
from ttsnap.sampling.interpolants import forward


class NearNoise(NamedTuple):
    """Noise near that of another particle's step, for a row's first step."""

    source: rng.Source
    """Of the other step."""
    share: float
    """Of the other step's noise; the rest is fresh."""


class AscentStart(NamedTuple):
    """A row's beginning before it is computed: the initial noise of a finished particle, turned
    along the gradient of its image's rewards."""

    parent: Node
    share: float
    """Of the old noise that is kept."""


@dataclass(slots=True, eq=False)
class Row:
    """One row of a move under way."""

    job: int
    uid: int
    key: rng.Key
    """(seed, branch): the particle's source of sampling noise."""
    node: Node
    """Where it is now."""
    stop: int
    """The grid step that it goes to."""
    end: int
    """The evaluations that have brought it there."""
    last: bool
    """Whether `stop` is the finished image."""
    look: LookRun
    """What is scored at `stop`."""
    begins: bool = False
    """Whether its particle has to begin, or had to; False where it begins as noise."""
    ahead: int = 0
    """Evaluations by which its particle began."""
    branched_at: int = -1
    """The position at which it leaves another particle; -1 for one that goes on."""
    near: NearNoise | None = None
    """Where its first step draws noise near that of another step; None for a plain row."""
    ascends_from: AscentStart | None = None
    """Set until its initial noise is computed; None for rows that do not ascend."""
    guided_steps: frozenset[int] = frozenset()
    """The positions from which its steps follow a gradient."""
    awaits_gradient: bool = False
    """Whether it stays where it is until the particle's gradient is there, which a sibling that
    moves on pays for."""

    @property
    def begun(self) -> bool:
        """Whether the particle began, or begins as noise."""
        return not self.begins or self.node.latent is not None

    @property
    def needs_gradient(self) -> bool:
        """Whether it cannot go on, or end here, without a gradient that is not there."""
        moves = self.node.position < self.end and self.node.position in self.guided_steps
        return (moves or self.awaits_gradient) and self.node.gradient is None

    @property
    def noise_source(self) -> rng.Source:
        """Where the noise of its next step comes from."""
        own = (*self.key, self.ahead + self.node.position)
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
        """Whether it has come to its stop, with all that it needs there but what its look makes."""
        here = self.node.position == self.end and self.begun and not self.needs_gradient
        return here and (self.node.prediction is not None or not self.look.reads_estimate)

    @property
    def waiting(self) -> Node | None:
        """The node that must be evaluated, or get its gradient, before this row can go on; None
        where none must."""
        if self.needs_gradient:
            return self.node
        if self.at_stop:
            return self.look.waiting
        return self.node if self.node.prediction is None else None

    @property
    def stage(self) -> Stage:
        """What it waits for."""
        if not self.begun:
            return Stage.BEGIN
        if self.at_stop and not self.look.done:
            return Stage.DRAFT
        return Stage.STEP

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute but its score."""
        return self.at_stop and self.look.done

    @property
    def scored(self) -> bool:
        """Whether it gets a score at its stop."""
        return self.look.scores


class Beginning(NamedTuple):
    """How a row starts; the fields are those of Row."""

    node: Node
    key: rng.Key
    branched_at: int = -1
    near: NearNoise | None = None
    ascends_from: AscentStart | None = None


@dataclass(frozen=True)
class RowBuilder:
    """Makes rows of plans: one for each of a plan's rows, with the node that it starts from.

    Nothing else in the engine reads plans.
    """

    noise: InitialNoise
    store: Store

    @torch.no_grad()
    def rows_of(self, job: int, plan: Plan) -> list[Row]:
        """The rows of a plan. Their particles are under way afterwards, no longer in the store."""
        rows = [self._row(job, plan, i) for i in range(len(plan))]
        self.store.remove(job, plan.uid.tolist())
        return rows

    def _row(self, job: int, plan: Plan, i: int) -> Row:
        denoiser = self.noise.denoiser
        stop = int(plan.rows.stop[i])
        score = bool(plan.rows.score[i])
        begun = self.beginning(job, plan, i)
        grid = denoiser.grid
        node = begun.node
        if node.prediction is None and node.step(grid)[0] == stop and not score:
            # Siblings may use this node's evaluation in this move; this row pays for its own later
            # (plans.py).
            node = node.unpaid()
        return Row(
            job=job,
            uid=int(plan.uid[i]),
            key=begun.key,
            node=node,
            stop=stop,
            end=int(grid.calls[stop]),
            begins=self.noise.starter is not None,
            ahead=self.noise.ahead,
            last=stop == grid.steps,
            look=look_run(plan.look.at(stop), score, stop, denoiser),
            branched_at=begun.branched_at,
            near=begun.near,
            ascends_from=begun.ascends_from,
        )

    def beginning(self, job: int, plan: Plan, i: int) -> Beginning:
        """How row i of a plan starts: a case for each kind of row."""
        kind = Kind(plan.rows.kind[i])
        parent = int(plan.rows.parent[i])
        seed = int(plan.seed[i])
        if kind == Kind.FRESH:  # the noise of its seed is drawn when the network is to see it
            return Beginning(Node(job, seed, 0, place=int(plan.place[i])), (seed, 0))
        (node, own), share = self.store[job, parent], float(plan.rows.share[i])
        if kind == Kind.CONTINUE:
            return Beginning(node, own)
        # A child draws noise of its own from here on; a particle that goes on keeps its source.
        key = (seed, int(plan.uid[i]) + 1)
        # a step at which no sampler draws
        beyond = (*key, self.noise.ahead + self.noise.denoiser.grid.nfe)
        if kind == Kind.RENOISE:
            return Beginning(self._renoised(node, int(plan.rows.start[i]), beyond), key)
        if kind == Kind.MIX:
            return Beginning(self.noise.near(node, share, beyond), key)
        if kind == Kind.ASCEND:
            return Beginning(Node(job, seed, 0), key, ascends_from=AscentStart(node, share))
        if kind == Kind.BRANCH:
            return Beginning(node, key, branched_at=node.position)
        sibling = int(plan.near[i])
        source = self.store[job, sibling].node.step_noise
        if source is None:
            raise ValueError(
                f"particle {sibling} was not made by one step from where {parent} is, so that no"
                " step noise can be near its own; name a child that took one step from there"
            )
        return Beginning(node, key, branched_at=node.position, near=NearNoise(source, share))

    def _renoised(self, parent: Node, start: int, key: rng.Key) -> Node:
        """The parent's latent, noised forward to the earlier step `start`: an exact draw of q(x_s |
        x_t)."""
        denoiser = self.noise.denoiser
        t = denoiser.times[[parent.position]]
        s = denoiser.times[[start]]
        x = forward(denoiser.path, parent.x[None], t, s, [key])[0]
        return self.noise.masked(
            [Node(parent.job, parent.seed, start, x, mixed_in=parent.mixed_in)]
        )[0]
