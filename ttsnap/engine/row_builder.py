"""What a submitted plan becomes: one row of the engine for each of its rows, with the node that it starts from.

Nothing else in the engine reads plans. Each kind of beginning is one small function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ttsnap.core.moves import Kind
from ttsnap.core.plans import Plan
from ttsnap.engine.initial_noise import InitialNoise
from ttsnap.engine.looks import look_run
from ttsnap.engine.rows import AscentStart, NearNoise, Row
from ttsnap.engine.store import Node, Particle, Store
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.interpolants import forward


class Beginning(NamedTuple):
    """How a row starts; the fields are those of Row."""

    node: Node
    key: rng.Key
    branched_at: int = -1
    near: NearNoise | None = None
    ascends_from: AscentStart | None = None


def fresh(job: int, seed: int) -> Beginning:
    """From the noise of a seed, which is drawn when the network is to see it."""
    return Beginning(Node(job, seed, 0), (seed, 0))


def continued(particle: Particle) -> Beginning:
    """The particle goes on from where it is."""
    return Beginning(particle.node, particle.key)


def branched(parent: Node, key: rng.Key) -> Beginning:
    """A child that shares its parent's evaluation and draws noise of its own from here on."""
    return Beginning(parent, key, branched_at=parent.position)


def near_sibling(parent: Node, key: rng.Key, near: NearNoise) -> Beginning:
    """A child whose first step draws noise near that of the step that made another child."""
    return Beginning(parent, key, branched_at=parent.position, near=near)


def from_mixed_noise(parent: Node, key: rng.Key, share: float, noise: InitialNoise) -> Beginning:
    """From `share` of the initial noise that the parent came from; the rest is fresh."""
    return Beginning(noise.near(parent, share, _beyond_last(key, noise.denoiser)), key)


def renoised(parent: Node, key: rng.Key, start: int, noise: InitialNoise) -> Beginning:
    """From the parent's latent, noised forward to the earlier step `start`: an exact draw of q(x_s | x_t)."""
    denoiser = noise.denoiser
    t, s = denoiser.times[[parent.position]], denoiser.times[[start]]
    x = forward(denoiser.path, parent.x[None], t, s, [_beyond_last(key, denoiser)])[0]
    return Beginning(noise.masked([Node(parent.job, parent.seed, start, x, mixed_in=parent.mixed_in)])[0], key)


def ascending(parent: Node, key: rng.Key, share: float) -> Beginning:
    """From the initial noise of a finished parent, turned along the gradient of its rewards, once that is taken."""
    return Beginning(Node(parent.job, parent.seed, 0), key, ascends_from=AscentStart(parent, share))


def _beyond_last(key: rng.Key, denoiser: Denoiser) -> rng.Key:
    """Noise belongs to the key and to a step beyond the last, at which no sampler draws."""
    return (*key, denoiser.grid.nfe)


@dataclass(frozen=True)
class RowBuilder:
    """Of one engine."""

    noise: InitialNoise
    store: Store

    @torch.no_grad()
    def rows_of(self, job: int, plan: Plan) -> list[Row]:
        """The rows of a plan. Their particles are under way afterwards, no longer in the store."""
        rows = [self._row(job, plan, i) for i in range(len(plan))]
        self.store.remove(job, plan.uid.tolist())
        return rows

    def _row(self, job: int, plan: Plan, i: int) -> Row:
        """Row i of a plan."""
        grid, stop, score = self.noise.denoiser.grid, int(plan.rows.stop[i]), bool(plan.rows.score[i])
        begun = self._beginning(job, plan, i)
        node = begun.node
        if node.prediction is None and node.step(grid)[0] == stop and not score:
            # Siblings may use this node's evaluation in this move; this row pays for its own later (plans.py).
            node = node.unpaid()
        return Row(
            job=job,
            uid=int(plan.uid[i]),
            key=begun.key,
            node=node,
            stop=stop,
            end=int(grid.calls[stop]),
            last=stop == grid.steps,
            look=look_run(plan.look.at(stop), score, stop, self.noise.denoiser),
            branched_at=begun.branched_at,
            near=begun.near,
            ascends_from=begun.ascends_from,
        )

    def _beginning(self, job: int, plan: Plan, i: int) -> Beginning:
        """How row i of a plan starts."""
        kind, parent, seed = Kind(plan.rows.kind[i]), int(plan.rows.parent[i]), int(plan.seed[i])
        if kind == Kind.FRESH:
            return fresh(job, seed)
        particle, share = self.store[job, parent], float(plan.rows.share[i])
        if kind == Kind.CONTINUE:
            return continued(particle)
        # A child draws noise of its own from here on; a particle that goes on keeps its source.
        node, key = particle.node, (seed, int(plan.uid[i]) + 1)
        if kind == Kind.RENOISE:
            return renoised(node, key, int(plan.rows.start[i]), self.noise)
        if kind == Kind.MIX:
            return from_mixed_noise(node, key, share, self.noise)
        if kind == Kind.ASCEND:
            return ascending(node, key, share)
        if kind == Kind.BRANCH:
            return branched(node, key)
        sibling = int(plan.near[i])
        source = self.store[job, sibling].node.step_noise
        if source is None:
            raise ValueError(f"particle {sibling} was not made by one step from where {parent} is, so that no step "
                             "noise can be near its own; name a child that took one step from there")  # fmt: skip
        return near_sibling(node, key, NearNoise(source, share))
