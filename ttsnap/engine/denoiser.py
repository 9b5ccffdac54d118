"""What the engine asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.sampling.interpolants import Interpolant
from ttsnap.sampling.kernels import AnyKernel, Prediction


class Denoiser(Protocol):
    """One pipeline family, set up for one call: fixed size, steps and guidance."""

    device: torch.device
    grid: Grid
    path: Interpolant
    times: Tensor
    """(K+1,) float64, the path's times at the grid points. Denoisers that follow a scheduler may have neither."""
    kernel: AnyKernel
    """The pipeline's own scheduler."""
    passes_per_nfe: int

    def encode(self, prompts: Sequence[str]) -> None:
        """Encode these prompts; `cond` below indexes them."""

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Initial noise (N, ...), row i as stock diffusers draws it from generators[i]."""

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        """One guided evaluation of x (N, ...); every row has its own step (N,) and prompt (N,), long on the CPU.

        Where a grid step takes several evaluations, `step` counts evaluations (Grid.calls).
        """

    def decode(self, x0: Tensor) -> Tensor:
        """(N, ...) -> images (N, 3, H, W) float32 in [0, 1]; as `predict`, with a graph where gradients are enabled."""

    def flops(self) -> tuple[float, float]:
        """FLOPs of one guided evaluation and of one decode, per particle."""


@runtime_checkable
class Previewer(Protocol):
    """A Denoiser that can also decode cheaply."""

    def preview(self, x0: Tensor) -> Tensor:
        """As Denoiser.decode, by a small VAE."""

    def preview_flops(self) -> float:
        """FLOPs of one preview."""
