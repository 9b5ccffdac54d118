"""How a stock call evaluates by a drafter: in frames of their own, which end with the evaluation.

Such a frame has the drafter's network in the place of the model's, is told other timesteps than the scheduler's, and is
led to its step without a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.pipelines.calls.frame import StockCall
from ttsnap.pipelines.calls.joining import tensors_in
from ttsnap.pipelines.calls.pool import Condition, FramePool
from ttsnap.pipelines.calls.rehearsal import Rehearsal, evaluated
from ttsnap.pipelines.guidance import SCALES
from ttsnap.sampling.rng import seeded

UNGUIDED = (1.0, 0.0)
"""Scales at which stock calls do without guidance; most at the first."""


class Told(NamedTuple):
    """What the scheduler of a draft's frame says."""

    times: Tensor
    """(P,) timesteps."""
    sigmas: Tensor | None = None
    """(P + 1,) noise levels; None: its own."""

    @classmethod
    def of(cls, scheduler: Any) -> Told:
        """What a scheduler says, whose timesteps are set."""
        times = torch.as_tensor(scheduler.timesteps).cpu()
        sigmas = getattr(scheduler, "sigmas", None)
        known = sigmas is not None and len(sigmas) > len(times)
        wide = times if times.is_floating_point() else times.float()
        return cls(wide, torch.as_tensor(sigmas).cpu() if known else None)

    def at(self, position: int, timestep: float) -> Told:
        """Another timestep at a position."""
        times = self.times.clone()
        times[position] = timestep
        return self._replace(times=times)

    def arriving(self, position: int) -> Told:
        """Nothing after a position, so that the step from it arrives at the end."""
        after = torch.arange(len(self.times) + 1) > position
        sigmas = None if self.sigmas is None else self.sigmas.masked_fill(after[: len(self.sigmas)], 0)
        return Told(self.times.masked_fill(after[:-1], 0), sigmas)


@dataclass(frozen=True)
class DraftRow:
    """What a drafter is asked for one row."""

    condition: Condition
    index: int
    told: Told


@dataclass(frozen=True)
class DraftCall:
    """A stock call with a drafter in the place of its network."""

    network: str
    """The part that it takes the place of."""
    net: Any
    """The drafter's, or a copy where the call puts processors or hooks into it."""
    frames: FramePool
    guided: Mapping[str, float]
    """Arguments of the call that differ from the model's own."""
    passes: int = 0
    flops: float = 0.0
    """Of an evaluation."""

    def evaluate(self, rows: Sequence[DraftRow], x: Tensor) -> Tensor:
        """The guided output (N, ...) for latents x (N, ...), scaled as the network reads them."""
        frames = [
            self.frames.begin(self.call(row), seeded(row.condition.seed), row.index, **{self.network: self.net})
            for row in rows
        ]
        for frame, latents in zip(frames, x.split(1), strict=True):
            frame.go_on(latents)
        self.frames.hub.run(frames)
        asked: list[Any] = [frame.question for frame in frames]
        for frame in frames:
            frame.close()
        return torch.cat([each.out for each in asked])

    def call(self, row: DraftRow) -> StockCall:
        """The stock call of a row."""
        call = self._guided(row.condition.stock)
        return replace(call, times=row.told.times, sigmas=row.told.sigmas, scaled=_unscaled)

    def _guided(self, call: StockCall) -> StockCall:
        return replace(call, arguments={**call.arguments, **self.guided})

    def counted(self, call: StockCall, latents: Tensor) -> DraftCall:
        """The same, with what an evaluation takes. latents: of the first step of this call."""
        frame = self.frames.begin(self._guided(call), seeded(0), **{self.network: self.net})
        frame.go_on(latents)
        passes, flops = evaluated(frame, self.frames.hub.networks)
        return replace(self, passes=passes, flops=flops)


@torch.no_grad()
def draft_call(
    rehearsed: Rehearsal, call: StockCall, net: Any, frames: FramePool, guided: Mapping[str, float] | None
) -> DraftCall:
    """The call of a drafter. guided: arguments that guide it; None: none, where the call can do without guidance."""
    network, takes = rehearsed.networks[0], call.takes
    found = DraftCall(network, net, frames, guided or {}).counted(call, rehearsed.latents)
    scales = SCALES if guided is None else ()
    for name, none in product([name for name in scales if name in takes], UNGUIDED):
        other = replace(found, guided={**found.guided, name: none}).counted(call, rehearsed.latents)
        found = other if other.passes < found.passes else found
    return found


@torch.no_grad()
def reads_arrival(draft: DraftCall, call: StockCall, told: Told, latents: Tensor) -> bool:
    """Whether the network of a call reads where its first step arrives, as flow maps do; of a call of one step True."""
    if len(told.times) == 1:
        return True
    seen = []
    for each in (told, told.arriving(0)):
        row = DraftRow(Condition(call, 0), 0, each)
        frame = draft.frames.begin(draft.call(row), seeded(0), **{draft.network: draft.net})
        frame.go_on(latents)
        draft.frames.hub.run([frame], networks=False)
        asked: Any = frame.question
        seen.append(tensors_in((asked.args, asked.kwargs)))
        frame.close()
    return any(not torch.equal(one, other) for one, other in zip(*seen, strict=True))


def _unscaled(x: Tensor, index: int) -> Tensor:
    return x
