"""The gradient of a finished image's reward with respect to its initial noise, back through its last evaluations.

ReNO (arXiv 2406.04312) climbs along it for models of one step. With more steps it is truncated: it goes back through
the last `depth` evaluations, one at a time, each made again from the latent that it started from, as gradient
checkpointing does. The gradient at the earliest of those latents stands in for the one at the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ttsnap.core.cost import Cost, Price, Rates
from ttsnap.core.needs import Gradient
from ttsnap.engine.gradients import Differentiator
from ttsnap.engine.initial_noise import InitialNoise
from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.rows import Row
from ttsnap.engine.stepper import Ran, Stepper
from ttsnap.engine.store import Node
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling.interpolants import rows as by_row


class AscentStepper(Stepper):
    """Plain steps that remember their latents, and the direction in which a finished particle's noise is to be turned.

    gradient: what its algorithm asks for. batch_size: most particles that get their gradients in one call. ValueError
    for samplers whose images do not depend on their initial noise alone, and rewards without a gradient.
    """

    def __init__(
        self,
        noise: InitialNoise,
        rewards: Sequence[RewardModel],
        gradient: Gradient,
        batch_size: int | None = None,
    ) -> None:
        denoiser, kernel = noise.denoiser, noise.kernel
        if kernel.stochastic or kernel.keeps_history or denoiser.grid.evals is not None:
            raise ValueError(f"climbing in initial noise needs a deterministic sampler without a history, and "
                             f"{type(kernel).__name__} is none; choose kernel ode")  # fmt: skip
        super().__init__(denoiser, kernel)
        self.noise, self.gradient_batch_size = noise, batch_size
        self.depth = min(gradient.depth or self.grid.steps, self.grid.steps)
        self.gradients = Differentiator(denoiser, rewards, "denoiser", gradient.weights)
        self.tried = self.gradients.tried

    def priced(self, price: Price) -> Price:
        rates, asked = self.gradients.rates(price.flops), len(self.gradients.rewards)
        return replace(price, flops=rates, depth=self.depth, asked=asked)

    def timed(self, seconds: Rates) -> tuple[Rates, Cost]:
        return self.gradients.seconds(seconds)

    def differentiate(self, nodes: Sequence[Node], prompts: EncodedPrompts) -> Ran:
        directions, cost = self.directions(nodes, torch.stack([self.noise.of(node) for node in nodes]), prompts)
        for node, direction in zip(nodes, directions, strict=True):
            node.gradient = direction
        return Ran(cost, self.depth)

    def directions(self, nodes: Sequence[Node], noise: Tensor, prompts: EncodedPrompts) -> tuple[Tensor, Cost]:
        """Where to turn the initial noise (N, ...) of these finished nodes: at right angles to it, as long as it is.

        0 where the gradient is 0 or not finite. And what that took.
        """
        cond, none = prompts.rows(nodes), [None] * len(nodes)
        texts = prompts.texts(nodes)
        level = torch.zeros(len(nodes), device=noise.device)
        x = torch.stack([node.x for node in nodes])
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            image = leaf
            gradient = self.gradients.gradient(lambda: self.gradients.value(image, texts, level), image)
            for back in range(1, self.depth + 1):
                leaf = torch.stack([node.latents_before[-back] for node in nodes]).detach().requires_grad_()
                k = torch.full((len(nodes),), self.grid.steps - back)
                moved, _ = self.kernel.step(leaf, self.denoiser.predict(leaf, k, cond), k, [()] * len(nodes), none)
                (gradient,) = torch.autograd.grad(moved, leaf, gradient.to(moved.dtype))
        cost = self.gradients.cost(len(nodes), self.depth, len(nodes) * self.depth)
        return _sideways(gradient, noise), cost

    def step(self, rows: Sequence[Row]) -> list[Node]:
        stepped = super().step(rows)
        for row, node in zip(rows, stepped, strict=True):
            node.latents_before = (*row.node.latents_before, row.node.x)[-self.depth :]
        return stepped


def _sideways(gradient: Tensor, noise: Tensor) -> Tensor:
    """The part of gradient (N, ...) at right angles to noise (N, ...), made as long as the noise is."""
    g, x = gradient.flatten(1).double(), noise.flatten(1).double()
    g = torch.where(g.isfinite().all(1, keepdim=True), g, 0.0)
    g = g - (g * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    size = g.norm(dim=1)
    scale = torch.where(size > 0, x.norm(dim=1) / size.clamp(min=1e-300), 0.0)
    return (g * by_row(scale, g)).view_as(noise).to(noise.dtype)
