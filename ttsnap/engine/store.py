"""Where the particles of a LiveEngine are: latents with their predictions, and the rows of moves under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import BoolArray
from ttsnap.core.grid import Grid
from ttsnap.core.looks import ESTIMATE, Look, Rollout
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Prediction


class Node:
    """A latent after `at` evaluations, with its prediction once paid. Children of a particle share it until they move.

    Initial noise is drawn from `seed` only when the network is to see it: seeds in waiting take no memory. `origin`
    tells how it was mixed since, (mix, key of the fresh noise, or what was mixed in) each time. `memory` is the
    state that the kernel keeps for it.
    `noise` is that of the one step which made a particle from another; None after any other step. `gradient` of the
    rewards is there where a guided step is to be taken from it (guided_steps.py); `log_ratio`, of the path to it, is a
    tensor () once there was one. `trail` holds the last latents before this one, for backpropagation through the
    evaluations between them (ascent.py); `upward` is the ascent direction that this gives for the initial noise, None
    until computed.
    """

    __slots__ = ("at", "features", "gradient", "job", "latent", "log_ratio", "memory", "noise", "origin", "prediction",
                 "seed", "trail", "upward")  # fmt: skip

    def __init__(
        self,
        job: int,
        seed: int,
        at: int,
        latent: Tensor | None = None,
        memory: Any = None,
        origin: tuple[tuple[float, Any], ...] = (),
    ) -> None:
        self.job, self.seed, self.at, self.latent, self.memory, self.origin = job, seed, at, latent, memory, origin
        self.prediction: Prediction | None = None
        self.noise: rng.Source | None = None
        self.features: Tensor | None = None
        self.gradient: Tensor | None = None
        self.log_ratio: Any = 0.0
        self.trail: tuple[Tensor, ...] = ()
        self.upward: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The latent; set once the network has seen it."""
        if self.latent is None:
            raise RuntimeError(f"the noise of seed {self.seed} was not drawn yet")
        return self.latent

    @property
    def x0(self) -> Tensor:
        """What can be decoded: the x0 estimate, where there is one, else the latent."""
        return self.x if self.prediction is None else self.prediction.x0

    def step(self, grid: Grid) -> tuple[int, bool]:
        """The grid step where it is, and whether an evaluation from there is already paid.

        Between the two stages of a solver's step, that is the step's start with the first evaluation paid.
        """
        step = int(np.searchsorted(grid.calls, self.at, side="right")) - 1
        return step, self.prediction is not None or self.at > grid.calls[step]

    def take(self, prediction: Prediction, row: int) -> None:
        """Keep this row of a batch's prediction."""
        self.prediction = Prediction(prediction.out[row], prediction.x0[row])
        if prediction.features is not None:
            self.features = prediction.features[row]

    def unpaid(self) -> Node:
        """The same latent, with an evaluation of its own."""
        found = Node(self.job, self.seed, self.at, self.latent, self.memory, self.origin)
        found.noise, found.log_ratio = self.noise, self.log_ratio
        return found


def stacked(nodes: Sequence[Node]) -> tuple[Tensor, Prediction, Tensor]:
    """x (N, ...), predictions and positions (N,) of nodes that have been evaluated."""
    predictions = [node.prediction for node in nodes if node.prediction is not None]
    out, x0 = torch.stack([p.out for p in predictions]), torch.stack([p.x0 for p in predictions])
    return torch.stack([node.x for node in nodes]), Prediction(out, x0), torch.tensor([node.at for node in nodes])


class Row:
    """One row of a move under way. `key` (seed, branch) is the particle's source of sampling noise.

    `near` are another particle's step noise, for the first step, and its share. `born`: evaluations at which this row
    leaves another particle; -1 for one that goes on.
    `stop` is the step it goes to, `end` the evaluations that have brought it there. A row that is scored by a draft
    goes on from there on a node of its own, `probe`, over the points in `ahead`; the particle itself stays at `stop`.
    `climbs`: (finished parent, share of its noise kept), until noise is drawn: the row starts from the parent's initial
    noise, turned along the gradient of the parent's reward. None for other rows.
    `guided` (K+1,) says from which steps it goes on with a gradient; `held`: it waits until its node has one, too.
    """

    __slots__ = ("_points", "ahead", "born", "climbs", "end", "guided", "held", "job", "key", "last", "near", "node",
                 "probe", "score", "stop", "uid")  # fmt: skip

    def __init__(
        self,
        job: int,
        uid: int,
        key: rng.Key,
        node: Node,
        stop: int,
        grid: Grid,
        score: bool,
        look: Look = ESTIMATE,
        born: int = -1,
        near: tuple[rng.Source, float] | None = None,
    ) -> None:
        self.job, self.uid, self.key, self.node, self.stop, self.score = job, uid, key, node, stop, score
        self.end, self.last = int(grid.calls[stop]), stop == grid.steps
        self.ahead = look.points(stop, grid.steps) if score and isinstance(look, Rollout) else []
        self._points = len(self.ahead)
        self.probe: Node | None = None
        self.born, self.near = born, near
        self.guided: BoolArray | None = None
        self.held = False
        self.climbs: tuple[Node, float] | None = None

    @property
    def pulls(self) -> bool:
        """Whether it cannot go on, or end here, without a gradient that is not there."""
        moves = self.guided is not None and self.node.at < self.end and bool(self.guided[self.node.at])
        return (moves or self.held) and self.node.gradient is None

    @property
    def noise(self) -> rng.Source:
        """Where the noise of the next step comes from."""
        own = (*self.key, self.node.at)
        return own if self.near is None or self.node.at != self.born else rng.near(*self.near, own)

    @property
    def there(self) -> bool:
        """Whether it has come to where it goes, and what it is scored by is known but for a draft."""
        here = self.node.at == self.end and not self.pulls
        return here and (self.node.prediction is not None or not self.score or self.last)

    @property
    def waiting(self) -> Node | None:
        """The node that needs an evaluation for this row to go on; None where none does."""
        node = self.node if self.probe is None else self.probe
        if self.pulls and self.probe is None:
            return self.node
        if node.prediction is not None or (self.there and self.probe is None):
            return None
        return node

    @property
    def done(self) -> bool:
        return self.there and not self.ahead and self.waiting is None

    @property
    def look_nfe(self) -> int:
        """Evaluations made for its look so far, beyond its own."""
        begun = self._points - len(self.ahead)
        return begun - int(self.probe is not None and self.probe.prediction is None)

    @property
    def judged(self) -> Node:
        """Whose estimate is scored."""
        return self.node if self.probe is None else self.probe
