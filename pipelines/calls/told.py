"""What the schedulers of frames say where it is not their own: other timesteps, other noise levels.

A call that was converted to another path steps at times of that path. A draft is told of less noise
than there is, and that its step arrives at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Told(NamedTuple):
    """What a scheduler says."""

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
        times = self.times.masked_fill(after[:-1], 0)
        if self.sigmas is None:
            return Told(times)
        return Told(times, self.sigmas.masked_fill(after[: len(self.sigmas)], 0))
