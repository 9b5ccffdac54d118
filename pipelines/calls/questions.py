"""What a stock call asks where it is suspended, and where its latents come from."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ttsnap.pipelines.suspended import Returned


class Drawn(NamedTuple):
    """The first latents are drawn. The answer is what the call begins with."""

    call: int
    """Which call of `prepare_latents` it is, from 1 on."""
    made: Any
    """The latents; in a rehearsal all that the method returned."""


class PartCall(NamedTuple):
    """A part of the pipeline is called. The answer is what that returns."""

    part: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


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
    """Where the latents of the first step come from."""

    call: int
    """The call of `prepare_latents`, from 1 on; 0 where it is not that which makes them (NOWHERE)."""
    entry: int | None
    """The entry of the tuple that it returns; None where it returns the latents alone."""


NOWHERE = LatentsPlace(0, None)
"""Of a call whose first latents cannot be put in: its frames begin with those of their seeds."""


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
