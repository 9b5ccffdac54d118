"""Steps that follow the gradient of rewards: which rows wait for one, where it comes from, and what it costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.cost import Cost, Guided, Price, Rates
from ttsnap.engine.gradients import Differentiator, saved_bytes
from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.rows import Row
from ttsnap.engine.stepper import Ran, Report, Stepper
from ttsnap.engine.store import Node, stacked
from ttsnap.profiling.memory import SHARE, gauge_of
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.guided_steps import Guidance, GuidedKernel
from ttsnap.sampling.kernels import GaussianKernel, Kernel, Prediction

logger = logging.getLogger(__name__)


class GuidedStepper(Stepper):
    """Guidance of one engine. batch_size: most rows of a call with a graph; None: what fits into a GPU's memory.

    ValueError, before the model is run, for kernels, rewards and networks that cannot be guided.
    """

    def __init__(
        self,
        guidance: Guidance,
        kernel: Kernel,
        denoiser: Denoiser,
        rewards: Sequence[RewardModel],
        batch_size: int | None,
    ) -> None:
        if not isinstance(kernel, GaussianKernel) or not kernel.stochastic:
            raise ValueError(f"guidance shifts the noise of a stochastic step, and {type(kernel).__name__} draws none "
                             "or keeps a history; choose kernel sde, ddim, ancestral or renoise")  # fmt: skip
        super().__init__(denoiser, kernel)
        self.guiding, self.gradient_batch_size = GuidedKernel(kernel, guidance, self.grid), batch_size
        self.gradients = Differentiator(denoiser, rewards, guidance.through, guidance.weights)
        self.tried = self.gradients.tried
        self.through = guidance.through == "denoiser"
        self.guided = Guided(guidance.steps(self.grid), self.through)
        self.row_bytes: int | None = None

    def priced(self, price: Price) -> Price:
        rates, asked = self.gradients.rates(price.flops), len(self.gradients.rewards)
        return replace(price, flops=rates, guided=self.guided, asked=asked)

    def timed(self, seconds: Rates) -> tuple[Rates, Cost]:
        return self.gradients.seconds(seconds)

    def prepare(self, prompts: Sequence[str]) -> Cost:
        """Measure what a row takes of memory, before a search, once; and what measuring took."""
        if self.row_bytes is not None:
            return Cost()
        x, zero = self.denoiser.init_latents([rng.seeded(0)]), torch.zeros(1, dtype=torch.long)
        self.row_bytes = saved_bytes(self.gradients, x, zero, zero, prompts[:1])
        gauge = gauge_of(self.denoiser.device)
        if self.gradient_batch_size is None and gauge is not None:
            self.gradient_batch_size = max(1, int(SHARE * gauge.free() // max(1, self.row_bytes)))
        logger.info("a gradient keeps %.1f MiB a row", self.row_bytes / 2**20)
        return self.gradients.cost(1, int(self.through), 1)

    def mark(self, rows: Sequence[Row]) -> None:
        """Mark the guided steps; a row that stays where its particle is waits for its sibling's gradient.

        A row stays where it ends at the step at which its particle is. Its sibling moves on from there, guided.
        """
        guided = frozenset(np.flatnonzero(self.guided.at).tolist())
        for row in rows:
            row.guided_steps = guided
        going = {id(row.node) for row in rows if row.node.position < row.end and row.node.position in guided}
        for row in rows:
            row.awaits_gradient = row.node.position == row.end and id(row.node) in going

    def differentiate(self, nodes: Sequence[Node], prompts: EncodedPrompts) -> Ran:
        new = [node for node in nodes if node.prediction is None]
        old = [node for node in nodes if node.prediction is not None]
        parts = [nodes] if self.through else [part for part in (new, old) if part]
        for part in parts:
            x, k = torch.stack([node.x for node in part]), torch.tensor([node.position for node in part])
            cond = prompts.rows(part)
            known = stacked(part)[1] if not self.through and part is old else None
            with_gradient = self.gradients(x, k, cond, prompts.texts(part), known)
            for i, node in enumerate(part):
                node.gradient = with_gradient.gradient[i]
                if node.prediction is None:
                    node.keep_prediction(with_gradient.prediction, i)
        evaluated = len(nodes) if self.through else len(new)
        return Ran(self.gradients.cost(len(nodes), int(self.through), evaluated), int(evaluated > 0))

    def step(self, rows: Sequence[Row]) -> list[Node]:
        """Guided from guided steps, else plainly; each node knows the log ratio of the path so far."""
        nodes, keys = [row.node for row in rows], [row.noise_source for row in rows]
        x, prediction, k = stacked(nodes)
        moved, ratios = torch.empty_like(x), [node.log_ratio for node in nodes]
        guided = self.guided.at[k.numpy()]
        for at, follows in ((np.flatnonzero(~guided), False), (np.flatnonzero(guided), True)):
            if not len(at):
                continue
            some = torch.from_numpy(at)
            here, names = some.to(x.device), [keys[i] for i in at.tolist()]
            part = Prediction(prediction.out[here], prediction.x0[here])
            if follows:
                gradient = _gradients([nodes[i] for i in at.tolist()])
                moved[here], more = self.guiding.step(x[here], part, gradient, k[some], names)
                for i, one in zip(at.tolist(), more, strict=True):
                    ratios[i] = ratios[i] + one
            else:
                moved[here], _ = self.kernel.step(x[here], part, k[some], names, [None] * len(names))
        stepped = [node.after_step(latent, None) for node, latent in zip(nodes, moved, strict=True)]
        for node, ratio in zip(stepped, ratios, strict=True):
            node.log_ratio = ratio
        return stepped

    def report(self, nodes: Sequence[Node]) -> Report:
        """The log ratios, in one transfer from the device, and whether each has its gradient."""
        # Paths without a guided step so far hold a plain 0, which must not meet a tensor on another device.
        ratios = [torch.as_tensor(node.log_ratio, dtype=torch.float64, device=self.denoiser.device) for node in nodes]
        values = torch.stack(ratios).cpu().numpy() if ratios else np.empty(0)
        return Report(values, np.array([node.gradient is not None for node in nodes], bool))


def _gradients(nodes: Sequence[Node]) -> Tensor:
    """(n, ...) of nodes that all have theirs."""
    return torch.stack([node.gradient for node in nodes if node.gradient is not None])
