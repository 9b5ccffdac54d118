"""What a suspended call stops for: where first latents are drawn, where a part is called, and where a
scheduler steps; and where first latents come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ttsnap.pipelines.suspended import Returned

# --- What a stock call asks where it is suspended -------------------------------------------------
# Drawn ──> PartCall, PartCall, ... ──> Step ──> PartCall, ... ──> Step ──> PartCall ──> Returned


class DrawnBy(NamedTuple):
    """A call of a method that draws latents."""

    method: str
    call: int
    """Which call of this method it is, from 1 on."""


class Drawn(NamedTuple):
    """First latents are drawn. The answer is what the call begins with; None: what is drawn."""

    by: DrawnBy
    made: Any
    """The latents; in a rehearsal all that the method returned."""
    field: int = 0
    """Which of the loop's fields they are."""


class PartCall(NamedTuple):
    """A part of the pipeline is called. The answer is what that returns."""

    part: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    begun: bool = False
    """Whether the call has stepped before."""

    @property
    def given(self) -> tuple[Any, ...]:
        """Its arguments, as one value."""
        return self.args, self.kwargs


class Step(NamedTuple):
    """The scheduler is to step. The answer is the latents of the next step."""

    out: Tensor
    """The guided output of the network."""
    time: Any
    sample: Tensor
    """The latents, as the call's own code may have changed them since the step before."""
    more: dict[str, Any]
    """Further arguments of the step."""
    scheduler: Any
    """The frame's own."""


Question: TypeAlias = Drawn | PartCall | Step | Returned


class Stepped(dict[str, Any]):
    """What a step returns in place of its scheduler's output: the latents, under any name of it."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__(prev_sample=latents, pred_original_sample=latents, denoised=latents)

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


# --- Where the first latents of a stock call come from, and how others are put in there -----------
# Most calls draw them by one method, and step what that returns. Some return them in a tuple, or
# permute their axes. Where they are not found again, none can be put in.


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
