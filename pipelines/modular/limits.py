"""What searches over the blocks of modular pipelines cannot do, and say so."""

from __future__ import annotations

from typing import Any, Self

from ttsnap.pipelines.denoiser import PipelineDenoiser


class LimitedDenoiser(PipelineDenoiser):
    """A denoiser whose network is called by blocks, which hand out their output alone."""

    blocks = None
    judges_estimates = False

    def merge_schedule(self, other: Self) -> int:
        raise ValueError("calls of modular pipelines have conditions of their own; let each have a network of its own")

    def use_drafter(self, spec: Any) -> None:
        raise ValueError("searches over modular pipelines have no drafts; leave draft out")

    def check_differentiable(self, through: str) -> None:
        raise ValueError("the blocks of modular pipelines run without gradients; leave guide out")
