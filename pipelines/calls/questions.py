"""What a stock call asks where it is suspended, and where its latents come from."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ttsnap.pipelines.suspended import Returned


class DrawnBy(NamedTuple):
    """A call of a method that draws latents."""

    method: str
    call: int
    """Which call of this method it is, from 1 on."""


class Drawn(NamedTuple):
    """First latents are drawn. The answer is what the call begins with; None: what is drawn."""

    place: DrawnBy
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


class LatentsPlace(NamedTuple):
    """Where the first latents of a field come from."""

    by: DrawnBy
    entry: int | None
    """The entry of the tuple that the method returns; None where it returns the latents alone."""
    axes: tuple[int, ...] | None = None
    """How the call permutes these axes before its first step, if it does (AnyFlow)."""


NOWHERE: tuple[LatentsPlace, ...] = ()
"""The places of a call whose first latents cannot be put in: its frames begin with those of their seeds."""


def permuted(latents: Tensor, axes: tuple[int, ...] | None, *, back: bool = False) -> Tensor:
    """Latents with their axes in this order; back: from this order."""
    if axes is None:
        return latents
    return latents.permute(tuple(map(axes.index, range(len(axes)))) if back else axes)


class Stepped(dict[str, Any]):
    """What a step returns in place of the scheduler's own output: the latents, under any of its names or indices."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__(prev_sample=latents, pred_original_sample=latents, denoised=latents)

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)
