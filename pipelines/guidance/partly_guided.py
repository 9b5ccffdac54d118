"""Denoisers that stop guiding at a step, from which they take one pass of the network in place of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.latents.schedule import Schedule


class PartlyGuidedDenoiser(PipelineDenoiser):
    """Z-Image and Lumina 2; prices count two passes for all steps."""

    judges_estimates: ClassVar[bool] = False

    def use_at(self, schedule: Schedule, guided_at: Sequence[bool]) -> None:
        """Set up with this schedule, guided at these of its positions."""
        self._guided_at = guided_at
        self._use(schedule, guided=any(guided_at))

    def merge_schedule(self, other: Self) -> int:
        start = super().merge_schedule(other)
        self._guided_at = [*self._guided_at, *other._guided_at]
        return start

    def guided_rows(self, step: Tensor) -> list[int]:
        """Which rows, at positions step (N,), are guided."""
        return [i for i, k in enumerate(step.tolist()) if self.guided and self._guided_at[k]]
