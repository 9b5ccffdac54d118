"""How a stock call evaluates by a drafter: in frames of their own, which end with the evaluation.

Such a frame has the drafter's network in the place of the model's. It is told other timesteps than
the scheduler's, and led to its step without a network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.hub import Hub
from ttsnap.pipelines.calls.joining import rows_of
from ttsnap.pipelines.calls.pool import FramePool
from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.calls.schedules import unscaled
from ttsnap.pipelines.calls.stock_call import SCALES, Condition, StockCall, Told
from ttsnap.pipelines.calls.stops import PartCall
from ttsnap.pipelines.calls.values import tensors_in
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.sampling.rng import seeded

NO_FLOW_MAP = (
    "draft self is for flow maps, whose network reads the time that it is to arrive at, and that of"
    " this call reads none; draft hot takes any model"
)
UNGUIDED = (1.0, 0.0)
"""Scales at which stock calls do without guidance; most at the first."""


@dataclass(frozen=True)
class DraftRow:
    """What a drafter is asked for one row."""

    condition: Condition
    index: int
    timestep: float
    told: Told

    @property
    def key(self) -> tuple[object, float]:
        """What rows agree in that one frame can have."""
        return self.condition.key(self.index), self.timestep


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
        frames = list[CallFrame]()
        at = list[int]()
        groups = dict[Any, list[int]]()
        for i, row in enumerate(rows):
            alone = row.condition.stock.widening is None
            groups.setdefault((row.key, i if alone else None), []).append(i)
        for numbers in groups.values():
            frames.append(self._begin(rows[numbers[0]], len(numbers)))
            at += numbers
        whole = len(groups) == 1
        self.frames.go_on(frames, [x if whole else x[numbers] for numbers in groups.values()])
        made = torch.cat([frame.step.out for frame in frames])
        for frame in frames:
            frame.close()
        return made if at == sorted(at) else made[torch.tensor(at).argsort().to(made.device)]

    def asked(self, row: DraftRow, latents: Tensor) -> list[Tensor]:
        """The tensors that the network is given for a row."""
        frame = self._begin(row)
        self.frames.go_on([frame], [latents], networks=False)
        given = tensors_in(frame.call.given)
        frame.close()
        return given

    def _begin(self, row: DraftRow, images: int = 1) -> CallFrame:
        wide = row.condition.stock.widened(images)
        stock = replace(self._guided(wide), told=row.told, scaled=unscaled)
        generators = [seeded(row.condition.seed) for _ in range(images)]
        return self.frames.begin(stock, generators, row.index, **{self.network: self.net})

    def _guided(self, call: StockCall) -> StockCall:
        return replace(call, arguments={**call.arguments, **self.guided})

    @torch.no_grad()
    def counted(self, call: StockCall, latents: Tensor) -> DraftCall:
        """The same, with what an evaluation takes. latents: of the first step of this call."""
        frame = self.frames.begin(self._guided(call), [seeded(0)], **{self.network: self.net})
        frame.go_on(latents)
        passes, flops = _evaluated(frame, self.frames.hub.networks)
        return replace(self, passes=passes, flops=flops)


def draft_call(
    rehearsed: Rehearsal,
    call: StockCall,
    net: Any,
    guided: Mapping[str, float] | None,
    *,
    alone: bool,
) -> DraftCall:
    """The call of a drafter.

    guided: arguments that guide it; None: none, where the call can do without guidance. alone:
    whether frames change parts around single calls, as in the hub.
    """
    network = rehearsed.networks[0]
    own = shared_copy(net) if rehearsed.held or alone else net
    frames = FramePool(Hub(rehearsed.networks, alone=alone), remembers=False)
    found = DraftCall(network, own, frames, guided or {}).counted(call, rehearsed.latents)
    if guided is not None:
        return found
    names = [name for name in SCALES if name in call.takes]
    for name, none in product(names, UNGUIDED):
        less = replace(found, guided={**found.guided, name: none})
        other = less.counted(call, rehearsed.latents)
        if other.passes < found.passes:
            found = other
    return found


@torch.no_grad()
def check_arrival(rehearsed: Rehearsal, call: StockCall, draft: DraftCall) -> None:
    """ValueError where the network does not read where its first step arrives, as flow maps do.

    Of a call of one step that is not to be seen.
    """
    told = Told.of(rehearsed.scheduler)
    if len(told.times) == 1:
        return
    one, other = (
        draft.asked(DraftRow(Condition(call, 0), 0, 0.0, each), rehearsed.latents)
        for each in (told, told.arriving(0))
    )
    if all(map(torch.equal, one, other)):
        raise ValueError(NO_FLOW_MAP)


def _evaluated(frame: CallFrame, networks: Collection[str]) -> tuple[int, float]:
    """Passes and FLOPs of the evaluation that a frame waits for. No network is asked."""
    rows = Counter[str]()
    flops = 0.0
    while isinstance(asked := frame.question, PartCall):
        shown = frame.answer_dummy()
        if asked.part in networks:
            rows[asked.part] += rows_of(asked)
            flops += shown.flops
    return max(rows.values()), flops
