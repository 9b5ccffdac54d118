"""What a stock call asks where it is suspended.

Drawn ──> PartCall, PartCall, ... ──> Step ──> PartCall, ... ──> Step ──> PartCall ──> Returned
"""

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
