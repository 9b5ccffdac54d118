"""When the frames of a call step: its schedule from the first step on, and what frames are told.

A search may begin later than the call, with finished drafts, so that its positions are not those of
frames. A call that was converted to another path steps at times of that path.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.told import Told
from ttsnap.pipelines.latents.convert import own_path, timestep_unit
from ttsnap.pipelines.latents.schedule import Schedule


@dataclass(frozen=True)
class FrameTimes:
    """Of one call."""

    whole: Schedule
    """From its first step on."""
    converted: bool = False
    """Whether frames are told other timesteps than their scheduler's, and given latents in the
    network's scale."""

    @property
    def last(self) -> int:
        """The index of finished latents."""
        return len(self.whole.timesteps)

    def before(self, schedule: Schedule) -> int:
        """Evaluations before the first position of a schedule, which ends as the whole one."""
        return self.last - len(schedule.timesteps)

    @property
    def known_path(self) -> bool:
        """Whether it is known on which path between data and noise the model was trained."""
        try:
            own_path(self.whole)
        except ValueError:
            return False
        return True

    def telling(self, call: StockCall) -> StockCall:
        """A call whose frames step at these times."""
        if self.converted:
            return replace(call, told=self._told(), scaled=unscaled)
        if self.whole.scale is None:
            return call
        return replace(call, scaled=functools.partial(_scaled, self.whole))

    def told_at(
        self, scheduler: Any, index: int, timestep: float, *, begin: int, arrives: bool
    ) -> Told:
        """What a frame's scheduler says that evaluates at an index, but is told this timestep.

        scheduler: the call's own. begin: its position at the call's first step. arrives: whether
        the step is to arrive at the end.
        """
        own = self._told() if self.converted else Told.of(scheduler)
        position = index if self.converted else begin + index
        told = own.at(position, timestep)
        return told.arriving(position) if arrives else told._replace(sigmas=None)

    def _told(self) -> Told:
        """What frames are told of a call that was converted."""
        whole, times = self.whole, self.whole.timesteps.float()
        if whole.prediction != "flow":
            return Told(times)
        levels = times / timestep_unit(whole, own_path(whole))
        return Told(times, torch.cat([levels, torch.zeros(1)]))


def unscaled(x: Tensor, index: int) -> Tensor:
    """The network's input of latents that were scaled before they were put in."""
    return x


def _scaled(schedule: Schedule, x: Tensor, index: int) -> Tensor:
    """The network's input of latents (n, ...), or of one number, at an index."""
    rows = x if x.ndim else x[None]
    made = schedule.scaled(rows, torch.full([len(rows)], index))
    return made if x.ndim else made[0]
