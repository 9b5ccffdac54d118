"""The gradient of a finished image's reward with respect to its initial noise, back through its last evaluations.

ReNO (arXiv 2406.04312) climbs along it for models of one step. With more steps it is truncated: it goes back through
the last `depth` evaluations, one at a time, each made again from the latent that it started from, as gradient
checkpointing does. The gradient at the earliest of those latents stands in for the one at the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttsnap.core.cost import Cost
from ttsnap.engine.gradients import Differentiator
from ttsnap.engine.store import Node
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.interpolants import rows
from ttsnap.sampling.kernels import Kernel


class Ascent:
    """Of one engine. depth: evaluations that it goes back through, None for all; weights: of the rewards.

    ValueError for samplers whose images do not depend on their initial noise alone, and rewards without a gradient.
    """

    def __init__(
        self, denoiser: Denoiser, kernel: Kernel, rewards: Sequence[RewardModel], depth: int | None, weights: Any = None
    ) -> None:
        if kernel.stochastic or kernel.keeps_history or denoiser.grid.evals is not None:
            raise ValueError(f"climbing in initial noise needs a deterministic sampler without a history, and "
                             f"{type(kernel).__name__} is none; choose kernel ode")  # fmt: skip
        self.denoiser, self.kernel = denoiser, kernel
        self.depth = min(depth or denoiser.grid.steps, denoiser.grid.steps)
        self.differentiate = Differentiator(denoiser, rewards, "denoiser", weights)

    def __call__(self, nodes: Sequence[Node], noise: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Cost]:
        """Where to turn the initial noise (N, ...) of these finished nodes: at right angles to it, as long as it is.

        0 where the gradient is 0 or not finite. And what that took.
        """
        cond, steps = torch.tensor([node.job for node in nodes]), self.denoiser.grid.steps
        texts = [prompts[node.job] for node in nodes]
        level = torch.zeros(len(nodes), device=noise.device)
        x = torch.stack([node.x for node in nodes])
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            image = leaf
            gradient = self.differentiate.gradient(lambda: self.differentiate.value(image, texts, level), image)
            for back in range(1, self.depth + 1):
                leaf = torch.stack([node.trail[-back] for node in nodes]).detach().requires_grad_()
                k = torch.full((len(nodes),), steps - back)
                none = [None] * len(nodes)
                moved, _ = self.kernel.step(leaf, self.denoiser.predict(leaf, k, cond), k, [()] * len(nodes), none)
                (gradient,) = torch.autograd.grad(moved, leaf, gradient.to(moved.dtype))
        cost = self.differentiate.cost(len(nodes), self.depth, len(nodes) * self.depth)
        return _sideways(gradient, noise), cost


def _sideways(gradient: Tensor, noise: Tensor) -> Tensor:
    """The part of gradient (N, ...) at right angles to noise (N, ...), made as long as the noise is."""
    g, x = gradient.flatten(1).double(), noise.flatten(1).double()
    g = torch.where(g.isfinite().all(1, keepdim=True), g, 0.0)
    g = g - (g * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    size = g.norm(dim=1)
    scale = torch.where(size > 0, x.norm(dim=1) / size.clamp(min=1e-300), 0.0)
    return (g * rows(scale, g)).view_as(noise).to(noise.dtype)
