"""A guider under ComfyUI's own samplers: each candidate's image is that of the stock KSampler at
its seed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.pipelines.comfyui.guided import GuidedCall, GuidedDenoiser, levels
from ttsnap.pipelines.comfyui.suspended import READ, StockSampler, SuspendedSampler, rehearse
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Prediction


@dataclass
class StockKernel:
    """Steps by a stock sampler. A candidate's state is its sampler, which has no children."""

    stock: StockSampler
    sigmas: Tensor
    """(P,) the noise level of each call."""
    begun: weakref.WeakSet[SuspendedSampler] = field(default_factory=weakref.WeakSet)
    """The candidates that there are."""
    stochastic: ClassVar[bool] = False
    keeps_history: ClassVar[bool] = True

    def init(
        self, noise: Tensor, key: rng.Key, generator: torch.Generator, guess: Tensor | None = None
    ) -> SuspendedSampler:
        stock = self.stock if guess is None else self.stock.redrawing(guess)
        candidate = SuspendedSampler(stock, noise, key[0])
        self.begun.add(candidate)
        return candidate

    def step(
        self,
        x: Tensor,
        prediction: Prediction,
        k: Tensor,
        keys: Sequence[rng.Source],
        state: Sequence[SuspendedSampler],
    ) -> tuple[Tensor, Sequence[SuspendedSampler]]:
        moved = [
            candidate.go_on(out, sigma)
            for candidate, out, sigma in zip(
                state, prediction.out, self.sigmas[k].tolist(), strict=True
            )
        ]
        return torch.stack(moved), state


class StockDenoiser(GuidedDenoiser):
    """A guider under a stock sampler. x at a position is the input of that call of the model."""

    kernel: StockKernel

    def __init__(self, guided: GuidedCall, sampler: Any, vae: Any, previewer: Any = None) -> None:
        self.stock = StockSampler(sampler, guided)
        self.rehearsal = rehearse(self.stock)
        super().__init__(guided, vae, previewer, hooked=self.rehearsal.hooked)
        self.sigmas = self.rehearsal.sigmas
        starts = self.rehearsal.starts
        evals = tuple(b - a for a, b in zip(starts, [*starts[1:], len(self.sigmas)], strict=True))
        self.grid = Grid(
            (*levels(self.sigmas[starts], flow=guided.flow), 0.0),
            None if set(evals) == {1} else evals,
        )
        self.kernel = StockKernel(self.stock, self.sigmas)

    def begin_from(self, latent: Tensor, noise: Tensor, cond: Tensor) -> Tensor:
        begun = zip(latent, noise, self.seeds_of(cond), strict=True)
        return torch.cat(
            [self.stock.redrawing(each).first_input(one[None], seed) for each, one, seed in begun]
        )

    def in_model(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.sigmas[torch.from_numpy(self.grid.calls)[step]]

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction:
        out = self.by_level(self._call, x, self.sigmas[step], cond)
        return Prediction(
            out, self.kept(out[:, READ.index("denoised")] if self.rehearsal.hooked else out)
        )

    def _call(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """What a call answers: x0 estimates (n, ...) or, for samplers that read both passes, (n, 3,
        ...) as READ."""
        guided = self.guided
        if not self.rehearsal.hooked:
            made: Tensor = guided.guider(x, sigma, model_options=guided.options, seed=None)
            return made
        from comfy.model_patcher import set_model_options_post_cfg_function

        seen: list[Tensor] = []

        def read(values: dict[str, Tensor]) -> Tensor:
            seen.append(torch.stack([values[name] for name in READ], 1))
            return values["denoised"]

        options = set_model_options_post_cfg_function(
            dict(guided.options), read, disable_cfg1_optimization=True
        )
        guided.guider(x, sigma, model_options=options, seed=None)
        return seen[0]

    def close(self) -> None:
        for candidate in list(self.kernel.begun):
            candidate.end()
