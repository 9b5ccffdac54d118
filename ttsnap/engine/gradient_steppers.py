"""The gradient of a finished image's reward with respect to its initial noise, back through its
last evaluations.

ReNO (arXiv 2406.04312) climbs along it for models of one step. With more steps it is truncated: it
goes back through the last `depth` evaluations, one at a time. Each is made again from its latent,
as gradient checkpointing does. The gradient at the earliest of those latents stands in for the one
at the noise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.cost import Cost, Rates
from ttsnap.core.needs import Gradient
from ttsnap.core.price import GuidedSteps, Price
from ttsnap.engine.gradients import Differentiator, saved_bytes
from ttsnap.engine.noise import InitialNoise
from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.rows import Row
from ttsnap.engine.stepper import Ran, Report, Stepper
from ttsnap.engine.store import Node, stacked
from ttsnap.profiling.memory import SHARE, gauge_of
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.rewards.scoring import Shown
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.guided_steps import GuidedKernel, RewardGuidance
from ttsnap.sampling.interpolants import rows as by_row
from ttsnap.sampling.kernels import GaussianKernel, Kernel, Prediction

logger = logging.getLogger(__name__)


class GradientStepper(Stepper):
    """Steps that take gradients of rewards."""

    depth: int = 0
    """As in Price."""
    guided: GuidedSteps | None = None
    """As in Price."""

    def __init__(self, kernel: Kernel, gradients: Differentiator, batch_size: int | None) -> None:
        super().__init__(gradients.denoiser, kernel)
        self.gradients = gradients
        self.tried = gradients.tried
        self.gradient_batch_size = batch_size

    def priced(self, price: Price) -> Price:
        rates = self.gradients.rates(price.flops)
        asked = self.gradients.calls
        return replace(price, flops=rates, guided=self.guided, depth=self.depth, asked=asked)

    def timed(self, seconds: Rates) -> tuple[Rates, Cost]:
        return self.gradients.seconds(seconds)


class GuidedStepper(GradientStepper):
    """Guidance of one engine. batch_size: most rows of a call with a graph; None: what fits into a
    GPU's memory.

    ValueError, before the model is run, for kernels, rewards and networks that cannot be guided.
    """

    def __init__(
        self,
        guidance: RewardGuidance,
        kernel: Kernel,
        denoiser: Denoiser,
        rewards: Sequence[RewardModel],
        batch_size: int | None,
        shown: Shown = Shown(),
    ) -> None:
        if not isinstance(kernel, GaussianKernel) or not kernel.stochastic:
            raise ValueError(
                f"guidance shifts the noise of a stochastic step, and {type(kernel).__name__} draws"
                " none or keeps a history; choose kernel sde, ddim, ancestral or renoise"
            )
        super().__init__(
            kernel,
            Differentiator(denoiser, rewards, guidance.through, guidance.weights, shown),
            batch_size,
        )
        self.guiding = GuidedKernel(kernel, guidance, self.grid)
        self.through = guidance.through == "denoiser"
        self.guided: GuidedSteps = GuidedSteps(guidance.steps(self.grid), self.through)
        self.row_bytes: int | None = None

    def prepare(self, prompts: Sequence[str]) -> Cost:
        """Measure what a row takes of memory, before a search, once; and what measuring took."""
        if self.row_bytes is not None:
            return Cost()
        x = self.denoiser.init_latents([rng.seeded(0)])
        zero = torch.zeros(1, dtype=torch.long)
        self.row_bytes = saved_bytes(self.gradients, x, zero, zero, prompts[:1])
        gauge = gauge_of(self.denoiser.device)
        if self.gradient_batch_size is None and gauge is not None:
            self.gradient_batch_size = max(1, int(SHARE * gauge.free() // max(1, self.row_bytes)))
        logger.info("a gradient keeps %.1f MiB a row", self.row_bytes / 2**20)
        return self.gradients.cost(1, int(self.through), 1)

    def mark(self, rows: Sequence[Row]) -> None:
        """Mark the guided steps; a row that stays where its particle is waits for its sibling's
        gradient.

        A row stays where it ends at the step at which its particle is. Its sibling moves on from
        there, guided.
        """
        guided = frozenset(np.flatnonzero(self.guided.at).tolist())
        for row in rows:
            row.guided_steps = guided
        going = {
            id(row.node)
            for row in rows
            if row.node.position < row.end and row.node.position in guided
        }
        for row in rows:
            row.awaits_gradient = row.node.position == row.end and id(row.node) in going

    def differentiate(self, nodes: Sequence[Node], prompts: EncodedPrompts) -> Ran:
        new = [node for node in nodes if node.prediction is None]
        old = [node for node in nodes if node.prediction is not None]
        parts = [nodes] if self.through else [part for part in (new, old) if part]
        for part in parts:
            x = torch.stack([node.x for node in part])
            k = torch.tensor([node.position for node in part])
            cond = prompts.rows(part)
            known = stacked(part)[1] if not self.through and part is old else None
            with_gradient = self.gradients(x, k, cond, prompts.texts(part), known)
            for i, node in enumerate(part):
                node.gradient = with_gradient.gradient[i]
                if node.prediction is None:
                    node.keep_prediction(with_gradient.prediction, i)
        evaluated = len(nodes) if self.through else len(new)
        return Ran(
            self.gradients.cost(len(nodes), int(self.through), evaluated), int(evaluated > 0)
        )

    def step(self, rows: Sequence[Row]) -> list[Node]:
        """Guided from guided steps, else plainly; each node knows the log ratio of the path so
        far."""
        nodes = [row.node for row in rows]
        keys = [row.noise_source for row in rows]
        x, prediction, k = stacked(nodes)
        moved = torch.empty_like(x)
        ratios = [node.log_ratio for node in nodes]
        guided = self.guided.at[k.numpy()]
        for at, follows in ((np.flatnonzero(~guided), False), (np.flatnonzero(guided), True)):
            if not len(at):
                continue
            some = torch.from_numpy(at)
            here = some.to(x.device)
            names = [keys[i] for i in at.tolist()]
            part = Prediction(prediction.out[here], prediction.x0[here])
            if follows:
                gradient = torch.stack(
                    [g for i in at.tolist() if (g := nodes[i].gradient) is not None]
                )
                moved[here], more = self.guiding.step(x[here], part, gradient, k[some], names)
                for i, one in zip(at.tolist(), more, strict=True):
                    ratios[i] = ratios[i] + one
            else:
                moved[here], _ = self.kernel.step(
                    x[here], part, k[some], names, [None] * len(names)
                )
        stepped = [node.after_step(latent, None) for node, latent in zip(nodes, moved, strict=True)]
        for node, ratio in zip(stepped, ratios, strict=True):
            node.log_ratio = ratio
        return stepped

    def report(self, nodes: Sequence[Node]) -> Report:
        """The log ratios, in one transfer from the device, and whether each has its gradient."""
        # Paths without a guided step so far hold a plain 0, which must not meet a tensor on another
        # device.
        ratios = [
            torch.as_tensor(node.log_ratio, dtype=torch.float64, device=self.denoiser.device)
            for node in nodes
        ]
        values = torch.stack(ratios).cpu().numpy() if ratios else np.empty(0)
        return Report(values, np.array([node.gradient is not None for node in nodes], bool))


class AscentStepper(GradientStepper):
    """Plain steps that remember their latents, and the direction in which a finished particle's
    noise is to be turned.

    gradient: what its algorithm asks for. batch_size: most particles that get their gradients in
    one call. ValueError for samplers whose images do not depend on their initial noise alone, and
    rewards without a gradient.
    """

    def __init__(
        self,
        noise: InitialNoise,
        rewards: Sequence[RewardModel],
        gradient: Gradient,
        batch_size: int | None = None,
        shown: Shown = Shown(),
    ) -> None:
        denoiser = noise.denoiser
        kernel = noise.kernel
        if kernel.stochastic or kernel.keeps_history or denoiser.grid.evals is not None:
            raise ValueError(
                "climbing in initial noise needs a deterministic sampler without a history, and "
                f"{type(kernel).__name__} is none; choose kernel ode"
            )
        by = Differentiator(denoiser, rewards, "denoiser", gradient.weights, shown)
        super().__init__(kernel, by, batch_size)
        self.noise, self.depth = noise, min(gradient.depth or self.grid.steps, self.grid.steps)

    def differentiate(self, nodes: Sequence[Node], prompts: EncodedPrompts) -> Ran:
        directions, cost = self.directions(
            nodes, torch.stack([self.noise.of(node) for node in nodes]), prompts
        )
        for node, direction in zip(nodes, directions, strict=True):
            node.gradient = direction
        return Ran(cost, self.depth)

    def directions(
        self, nodes: Sequence[Node], noise: Tensor, prompts: EncodedPrompts
    ) -> tuple[Tensor, Cost]:
        """Where to turn the initial noise (N, ...) of these finished nodes: at right angles to it,
        as long as it is.

        0 where the gradient is 0 or not finite. And what that took.
        """
        cond = prompts.rows(nodes)
        none = [None] * len(nodes)
        texts = prompts.texts(nodes)
        level = torch.zeros(len(nodes), device=noise.device)
        x = torch.stack([node.x for node in nodes])
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            image = leaf
            gradient = self.gradients.gradient(
                lambda: self.gradients.value(image, cond, texts, level), image
            )
            for back in range(1, self.depth + 1):
                leaf = (
                    torch.stack([node.latents_before[-back] for node in nodes])
                    .detach()
                    .requires_grad_()
                )
                k = torch.full((len(nodes),), self.grid.steps - back)
                prediction = self.denoiser.predict(leaf, k, cond)
                seen = leaf if prediction.x is None else prediction.x
                moved, _ = self.kernel.step(seen, prediction, k, [()] * len(nodes), none)
                (gradient,) = torch.autograd.grad(moved, leaf, gradient.to(moved.dtype))
        cost = self.gradients.cost(len(nodes), self.depth, len(nodes) * self.depth)
        return _sideways(gradient, noise), cost

    def step(self, rows: Sequence[Row]) -> list[Node]:
        stepped = super().step(rows)
        for row, node in zip(rows, stepped, strict=True):
            node.latents_before = (*row.node.latents_before, row.node.x)[-self.depth :]
        return stepped


def _sideways(gradient: Tensor, noise: Tensor) -> Tensor:
    """The part of gradient (N, ...) at right angles to noise (N, ...), made as long as the noise
    is."""
    g = gradient.flatten(1).double()
    x = noise.flatten(1).double()
    g = torch.where(g.isfinite().all(1, keepdim=True), g, 0.0)
    g = g - (g * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    size = g.norm(dim=1)
    scale = torch.where(size > 0, x.norm(dim=1) / size.clamp(min=1e-300), 0.0)
    return (g * by_row(scale, g)).view_as(noise).to(noise.dtype)
