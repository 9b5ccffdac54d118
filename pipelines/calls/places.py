"""Where the first latents of a stock call come from, and how others are put in there.

Most calls draw them by one method, and step what that returns. Some return them in a tuple, or
permute their axes. Where they are not found again, none can be put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.pipelines.calls.questions import Drawn, DrawnBy


class LatentsPlace(NamedTuple):
    """Where the first latents of a field come from."""

    by: DrawnBy
    entry: int | None
    """The entry of the tuple that the method returns; None where it returns the latents alone."""
    axes: tuple[int, ...] | None = None
    """How the call permutes these axes before its first step, if it does (AnyFlow)."""

    def latents(self, made: Any) -> Tensor:
        """The latents in what the method returned, as the call steps them."""
        drawn: Tensor = made if self.entry is None else made[self.entry]
        return _permuted(drawn, self.axes)

    def put(self, latents: Tensor, made: Any) -> Any:
        """What the method returned, with others in the place of these latents."""
        if self.axes is not None:
            latents = latents.permute([self.axes.index(axis) for axis in range(latents.ndim)])
        if (at := self.entry) is None:
            return latents
        return (*made[:at], latents, *made[at + 1 :])


NOWHERE: tuple[LatentsPlace, ...] = ()
"""Of a call whose first latents cannot be put in: its frames begin with those of their seeds."""


def place_of(latents: Tensor, all_drawn: Sequence[Drawn]) -> LatentsPlace | None:
    """Where latents come from, of all that a call drew; None where they are not found."""
    for drawn in all_drawn:
        several = isinstance(drawn.made, tuple)
        for entry, value in enumerate(drawn.made) if several else [(None, drawn.made)]:
            if not isinstance(value, Tensor):
                continue
            for axes in _orders(value):
                if _same(_permuted(value, axes), latents):
                    return LatentsPlace(drawn.by, entry, axes)
    return None


def _orders(latents: Tensor) -> Iterator[tuple[int, ...] | None]:
    """In which a call may put the axes of its latents, beside that of rows."""
    yield None
    yield from ((0, *rest) for rest in permutations(range(1, latents.ndim)))


def _permuted(latents: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    return latents if axes is None else latents.permute(axes)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether these are the same latents, but for a cast."""
    return one is other or (one.shape == other.shape and torch.equal(one.to(other), other))
