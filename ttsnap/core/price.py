"""What a move costs, exactly and before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ttsnap.core.arrays import BoolArray, IntArray
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid
from ttsnap.core.moves import Move
from ttsnap.core.particles import Particles
from ttsnap.core.rows import ascends, drafted, mixes


@dataclass(frozen=True)
class Rates:
    """A price per unit of Cost, in FLOPs or in seconds. `call` is a fixed overhead per denoiser batch.

    `gradient` and `backward` are backward passes alone: their forward halves are among the decodes, reward calls and
    evaluations of a Cost, so that nothing is paid twice.
    """

    nfe: float = 0.0
    decode: float = 0.0
    reward_call: float = 0.0
    call: float = 0.0
    preview: float = 0.0
    gradient: float = 0.0
    backward: float = 0.0

    def of(self, cost: Cost) -> float:
        decoding = self.decode * cost.decodes + self.preview * cost.previews
        return self.nfe * cost.nfe + decoding + self.reward_call * cost.reward_calls + self.pulling(cost)

    def pulling(self, cost: Cost) -> float:
        """What the backward passes of a cost take."""
        return self.gradient * cost.gradients + self.backward * cost.backwards

    def pixels(self, estimates: str) -> float:
        """What making pixels of one unfinished estimate takes; `estimates` as in Price."""
        return {"decode": self.decode, "preview": self.preview, "nothing": 0.0}[estimates]


@dataclass(frozen=True)
class Guided:
    """Which steps (K,) a reward's gradient guides, and whether it goes back `through` the denoiser (guided_steps.py).

    A particle that moves on from such a step takes one gradient there, which its siblings share. Through the denoiser,
    the gradient is computed with the evaluation; an earlier evaluation without a graph is rerun and charged again.
    """

    steps: tuple[bool, ...]
    through: bool

    @cached_property
    def at(self) -> BoolArray:
        """(K+1,) steps."""
        return np.array([*self.steps, False])

    @cached_property
    def before(self) -> IntArray:
        """(K+1,) gradients that it takes to get from noise to each step."""
        return np.concatenate([[0], np.cumsum(self.steps)])


@dataclass(frozen=True)
class Price:
    """What one unit costs on this engine. `seconds` is None until it has been measured.

    estimates: what scoring an unfinished estimate takes: a "decode", a "preview" by a cheap VAE, or "nothing". A
    finished image always takes a decode. depth: evaluations that the gradient of a finished image goes back through.
    asked: rewards that a gradient asks; each is a reward call, and the decode that they share is one, too.
    """

    flops: Rates = Rates()
    seconds: Rates | None = None
    passes_per_nfe: int = 1
    estimates: str = "decode"
    guided: Guided | None = None
    depth: int = 0
    asked: int = 1

    def __post_init__(self) -> None:
        for name, least in (("passes_per_nfe", 1), ("depth", 0), ("asked", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a price must be at least {least}, got {getattr(self, name)}")

    def of_gradients(self, gradients: int, backwards: int, nfe: int = 0) -> Cost:
        """The cost of so many gradients, which go back through `backwards` evaluations, of which `nfe` are new."""
        return Cost(nfe, gradients, gradients * self.asked, gradients=gradients, backwards=backwards)


PLAIN = Price()


def price_move(move: Move, particles: Particles, grid: Grid, rewards: int, price: Price = PLAIN) -> Cost:
    """Exact cost of a move, for so many rewards; of `price` count estimates, guided, depth and asked.

    A row from step a to b takes the evaluations of the steps between (b - a, where each takes one), one more if it is
    scored before the end (the x0 estimate at b), and one less if the estimate at a is already paid. Children of one
    particle share the evaluation at its step.
    """
    ahead = move.score & (move.stop < grid.steps)
    scored, early = int(np.count_nonzero(move.score)), int(np.count_nonzero(ahead))
    calls = int((grid.calls[move.stop] - grid.calls[move.start]).sum()) + early
    if move.draft is not None:
        calls += int(drafted(move, grid).sum())
    own = move.parent >= 0
    uids, start = move.parent[own], move.start[own]
    uses = ((move.stop > move.start) | ahead)[own] & (start == particles.step[uids]) & ~mixes(move)[own]
    shared = uids[uses]
    calls -= len(shared) - len(set(shared[~particles.cached[shared]].tolist()))
    decodes = scored if price.estimates == "decode" else scored - early
    cost = Cost(calls, decodes, scored * rewards, early if price.estimates == "preview" else 0)
    if move.ascend is not None:  # a particle's gradient is paid once
        up = np.unique(move.parent[ascends(move)])
        new = len(up) if particles.pulled is None else int((~particles.pulled[up]).sum())
        cost += price.of_gradients(new, new * price.depth, new * price.depth)
    return cost if price.guided is None else cost + _gradients(move, particles, price, price.guided)


def _gradients(move: Move, particles: Particles, price: Price, guided: Guided) -> Cost:
    """What guidance adds to a move."""
    pulls = int((guided.before[move.stop] - guided.before[move.start]).sum())
    own = np.flatnonzero((move.parent >= 0) & (move.stop > move.start) & ~mixes(move))
    shared = move.parent[own][(move.start[own] == particles.step[move.parent[own]]) & guided.at[move.start[own]]]
    parents = np.unique(shared)
    paid = np.zeros(len(parents), bool) if particles.pulled is None else particles.pulled[parents]
    pulls -= len(shared) - int((~paid).sum())
    again = int((particles.cached[parents] & ~paid).sum()) if guided.through else 0
    return price.of_gradients(pulls, pulls if guided.through else 0, again)


def finish_cost(
    step: IntArray | int,
    cached: BoolArray | bool,
    grid: Grid,
    rewards: int,
    price: Price = PLAIN,
    pulled: BoolArray | bool = False,
) -> Cost:
    """Cost of taking a particle from `step` to a finished, scored image; of several (n,), the one that takes least."""
    step, cached = np.atleast_1d(step), np.atleast_1d(cached)
    calls = grid.nfe - grid.calls[step] - (cached & (step < grid.steps))
    if (guided := price.guided) is None:
        return Cost(int(calls.min()), 1, rewards)
    pulls = guided.before[-1] - guided.before[step] - pulled
    again = cached & guided.at[step] & ~np.asarray(pulled) if guided.through else np.zeros(len(step), bool)
    least = np.lexsort((pulls, calls + again))[0]
    gradients = int(pulls[least])
    cost = price.of_gradients(gradients, gradients if guided.through else 0, int(again[least]))
    return Cost(int(calls[least]), 1, rewards) + cost
