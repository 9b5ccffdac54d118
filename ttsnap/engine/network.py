"""A denoiser as engines use it: one engine alone, or several that fill each other's batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ttsnap.core.grid import Grid
from ttsnap.engine.store import Node
from ttsnap.sampling.denoiser import Denoiser

if TYPE_CHECKING:
    from ttsnap.engine.executor import Executor
    from ttsnap.engine.live import LiveEngine


class Asking(NamedTuple):
    """A node that waits for its evaluation, and the executor of the engine that it belongs to."""

    executor: Executor
    node: Node


class Network:
    """Encodes the prompts of its engines together, and evaluates their rows together, wherever they are in their grids.

    An engine that is told of none has one for itself, over its own denoiser. One that several share is made with a
    denoiser that is none of theirs: a call like theirs, for any number of steps. Their grids lie in it one after the
    other (Denoiser.take_in); what else belongs to a grid, as kernels, looks and initial noise do, stays with the
    engines.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.engines: list[LiveEngine] = []
        self._starts: dict[Grid, int] = {denoiser.grid: 0}

    def start_of(self, denoiser: Denoiser) -> int:
        """Where the positions of this call begin among those of the network's denoiser. ValueError for a call that
        differs from that in more than its steps."""
        if denoiser.grid not in self._starts:
            self._starts[denoiser.grid] = self.denoiser.take_in(denoiser)
        return self._starts[denoiser.grid]

    def encode(self) -> None:
        """Encode the prompts of all jobs that there are, and tell the engines where theirs are."""
        prompts = [engine.executor.prompts for engine in self.engines]
        self.denoiser.encode([text for one in prompts for text in one.living])
        row = 0
        for one in prompts:
            row = one.place(row)

    def guests(self, host: LiveEngine, room: int) -> list[Asking]:
        """At most `room` nodes of other engines, which fill up a batch of this one; whose come first goes round."""
        at, found = self.engines.index(host), list[Asking]()
        for engine in (*self.engines[at + 1 :], *self.engines[:at]):
            if len(found) < room:
                found += engine.asking(room - len(found))
        return found
