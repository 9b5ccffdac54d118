"""How particles come to step 0, as far as plans and prices must know it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from ttsnap.core.cost import Cost


@dataclass(frozen=True)
class Start:
    """What particles take before step 0: nothing as noise (the default), something from drafts, or
    in groups of seeds that begin together.

    How they begin is known to sampling/starts.py alone.
    """

    size: int = 1
    """Seeds that begin together: of the fresh seeds of a search, counted from 0, those from a
    multiple of it on."""
    cost: Cost = field(default_factory=Cost)
    """Of so many seeds. The first of them pays for all, the others nothing."""
    first: int = 0
    """Steps of the whole call that seeds have taken together when they begin."""
    image_nfe: int | None = None
    """Evaluations of an image from noise, where the grid is only the rest of the call's."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"one seed at least begins, got groups of {self.size}")
        if min(self.first, *self.cost.amounts()) < 0:
            raise ValueError(
                f"what begins a seed cannot be negative, got {self.first} steps, {self.cost}"
            )

    @cached_property
    def plain(self) -> bool:
        """Whether particles are there without taking anything."""
        return self.cost == Cost()

    @cached_property
    def alone(self) -> Cost:
        """Of a particle that begins by itself, as one from mixed noise does: it is coupled with no
        other."""
        share = Cost(*(amount // self.size for amount in self.cost.amounts()))
        return replace(share, coupled=0)


AS_NOISE = Start()
"""Particles that begin as noise."""
