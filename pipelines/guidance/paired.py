"""Denoisers that are guided by one call of the network on twice as many rows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.latents.rows import both, take
from ttsnap.pipelines.latents.schedule import make_schedule, refuse_flow_match


class PairedDenoiser(PipelineDenoiser):
    """Rows with the negative prompt first, then those with the prompt. A family defines `call`."""

    scales: ClassVar[bool] = True
    """Whether the stock call asks the scheduler how to scale initial noise and the network's input."""

    def follow(
        self,
        num_inference_steps: int,
        timesteps: list[int] | None,
        sigmas: list[float] | None,
        eta: float,
        *,
        guided: bool,
    ) -> None:
        """Lay out the pipeline's scheduler for these arguments of a stock call."""
        scheduler = self.pipe.scheduler
        if self.scales:
            refuse_flow_match(scheduler)
        schedule = make_schedule(
            scheduler,
            num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            step_arguments={"eta": eta},
            scaled=self.scales,
        )
        self._use(schedule, guided=guided)

    def call(self, x: Tensor, t: Tensor, at: Tensor) -> Tensor:
        """The network's output (M, ...) at x (M, ...) and t (M,); M is N rows of the prompts `at` (N,), or 2N."""
        raise NotImplementedError

    def pairs(self, negative: Any, positive: Any, at: Tensor) -> Any:
        """Rows of what was encoded, as `call` wants them: of both kinds under guidance."""
        return both(negative, positive, at) if self.guided else take(positive, at)

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor:
        if not self.guided:
            return self.call(x, t, at)
        unconditional, conditional = self.call(torch.cat([x, x]), torch.cat([t, t]), at).chunk(2)
        return self.guided_output(unconditional, conditional)
