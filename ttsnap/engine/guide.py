"""What a LiveEngine does under guidance: which rows wait for a gradient, where it comes from, and what it costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import BoolArray, FloatArray
from ttsnap.core.cost import Cost
from ttsnap.core.price import Guided
from ttsnap.engine.gradients import Differentiator, saved_bytes
from ttsnap.engine.store import Node, Row, stacked
from ttsnap.profiling.memory import SHARE, gauge_of
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.guided_steps import Guidance, guided_step
from ttsnap.sampling.kernels import GaussianKernel, Kernel, Prediction

logger = logging.getLogger(__name__)


class Guide:
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
        self.guidance, self.kernel, self.batch_size = guidance, kernel, batch_size
        self.denoiser, self.grid = denoiser, denoiser.grid
        self.differentiate = Differentiator(denoiser, rewards, guidance.through, guidance.weights)
        self.through = guidance.through == "denoiser"
        self.guided = Guided(guidance.steps(self.grid), self.through)
        self.row_bytes: int | None = None
        self._lam = guidance.tempered(self.grid)

    def prepare(self, prompts: Sequence[str]) -> Cost:
        """Measure what a row takes of memory, before a search, once; and what measuring took."""
        if self.row_bytes is not None:
            return Cost()
        x, zero = self.denoiser.init_latents([rng.seeded(0)]), torch.zeros(1, dtype=torch.long)
        self.row_bytes = saved_bytes(self.differentiate, x, zero, zero, prompts[:1])
        gauge = gauge_of(self.denoiser.device)
        if self.batch_size is None and gauge is not None:
            self.batch_size = max(1, int(SHARE * gauge.free() // max(1, self.row_bytes)))
        logger.info("a gradient keeps %.1f MiB a row", self.row_bytes / 2**20)
        return self.differentiate.cost(1, int(self.through), 1)

    def mark(self, rows: Sequence[Row]) -> None:
        """Mark guided steps in the rows of a move; a staying row waits for its sibling's gradient.

        A row stays where it ends at the step at which its particle is. Its sibling moves on from there, guided.
        """
        for row in rows:
            row.guided = self.guided.at
        going = {id(row.node) for row in rows if row.node.at < row.end and self.guided.at[row.node.at]}
        for row in rows:
            row.held = row.node.at == row.end and id(row.node) in going

    def pull(self, batch: Sequence[Node], prompts: Sequence[str]) -> Cost:
        """Give these nodes their gradients, and predictions where they have none; what it took."""
        new = [node for node in batch if node.prediction is None]
        old = [node for node in batch if node.prediction is not None]
        parts = [batch] if self.through else [part for part in (new, old) if part]
        for part in parts:
            x, k = torch.stack([node.x for node in part]), torch.tensor([node.at for node in part])
            cond = torch.tensor([node.job for node in part])
            known = stacked(part)[1] if not self.through and part is old else None
            found = self.differentiate(x, k, cond, [prompts[node.job] for node in part], known)
            for i, node in enumerate(part):
                node.gradient = found.gradient[i]
                if node.prediction is None:
                    node.take(found.prediction, i)
        return self.differentiate.cost(len(batch), int(self.through), len(batch) if self.through else len(new))

    def step(
        self, nodes: Sequence[Node], x: Tensor, prediction: Prediction, k: Tensor, keys: Sequence[Any]
    ) -> tuple[Tensor, list[Any]]:
        """Where these nodes go, guided from guided steps, else plainly; and the log ratios of the paths so far."""
        found, totals = torch.empty_like(x), [node.log_ratio for node in nodes]
        guided = self.guided.at[k.numpy()]
        for rows, pulled in ((np.flatnonzero(~guided), False), (np.flatnonzero(guided), True)):
            if not len(rows):
                continue
            at = torch.from_numpy(rows)
            there, some = at.to(x.device), [nodes[i] for i in rows.tolist()]
            part, names = Prediction(prediction.out[there], prediction.x0[there]), [keys[i] for i in rows.tolist()]
            ratios = [node.log_ratio for node in some]
            if pulled:
                gradient = torch.stack([g for g in (node.gradient for node in some) if g is not None])
                state = (x[there], part, gradient, k[at], names)
                moved, more = guided_step(self.kernel, self.guidance, self._lam, *state)
                ratios = [before + one for before, one in zip(ratios, more, strict=True)]
            else:
                moved, _ = self.kernel.step(x[there], part, k[at], names, [None] * len(names))
            found[there] = moved
            for i, ratio in zip(rows.tolist(), ratios, strict=True):
                totals[i] = ratio
        return found, totals

    def told(self, nodes: Sequence[Node]) -> tuple[FloatArray, BoolArray]:
        """log_ratio and pulled (n,) of rows that come to rest, in one transfer from the device."""
        # Paths without a guided step so far hold a plain 0, which must not meet a tensor on another device.
        ratios = [torch.as_tensor(node.log_ratio, dtype=torch.float64, device=self.denoiser.device) for node in nodes]
        values = torch.stack(ratios).cpu().numpy() if ratios else np.empty(0)
        return values, np.array([node.gradient is not None for node in nodes], bool)
