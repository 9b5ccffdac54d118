"""Steppers: how rows go on from nodes that have been evaluated, and what that takes beside the
evaluations.

The one here is plain: it takes the kernel's step. GuidedStepper follows the gradient of rewards,
AscentStepper turns initial noise along it. How rows are marked, priced, computed and reported is
theirs. The rest of the engine need not know which one it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ttsnap.core.arrays import BoolArray, FloatArray
from ttsnap.core.cost import Cost, Rates
from ttsnap.core.price import Price
from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.rows import Row
from ttsnap.engine.store import Node, stacked
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.kernels import Kernel


class Ran(NamedTuple):
    """What something took."""

    cost: Cost
    calls: int
    """Of the denoiser."""


class Report(NamedTuple):
    """What a stepper tells of n particles that come to rest."""

    log_ratio: FloatArray | None = None
    """(n,) as in Outcome."""
    has_gradient: BoolArray | None = None
    """(n,) as in Outcome."""


class Stepper:
    """Plain steps by the kernel of one engine."""

    tried: Cost = Cost()
    """What making it took."""
    gradient_batch_size: int | None = None
    """The most nodes that get their gradients in one call; None: as many as are evaluated in
    one."""

    def __init__(self, denoiser: Denoiser, kernel: Kernel) -> None:
        self.denoiser = denoiser
        self.kernel = kernel
        self.grid = denoiser.grid

    def priced(self, price: Price) -> Price:
        """This price, with that of gradients in FLOPs."""
        return price

    def timed(self, seconds: Rates) -> tuple[Rates, Cost]:
        """These rates, with that of gradients in seconds, and what measuring them took."""
        return seconds, Cost()

    def prepare(self, prompts: Sequence[str]) -> Cost:
        """Get ready for a search; returns what that took."""
        return Cost()

    def mark(self, rows: Sequence[Row]) -> None:
        """Mark in the rows of one move which of their steps need a gradient."""

    def differentiate(self, nodes: Sequence[Node], prompts: EncodedPrompts) -> Ran:
        """Give these nodes their `gradient`, and the prediction where it is made on the way;
        prompts: of all jobs."""
        raise RuntimeError("plain steps follow no gradient, so no row may ask for one")

    def step(self, rows: Sequence[Row]) -> list[Node]:
        """The nodes to which these rows, whose nodes are evaluated, go in one step."""
        x, prediction, k = stacked([row.node for row in rows])
        keys = [row.noise_source for row in rows]
        states = [row.node.kernel_state for row in rows]
        moved, states_after = self.kernel.step(x, prediction, k, keys, states)
        return [
            row.node.after_step(latent, state)
            for row, latent, state in zip(rows, moved, states_after, strict=True)
        ]

    def report(self, nodes: Sequence[Node]) -> Report:
        """What there is to tell of these particles beside where they are."""
        return Report()
